"""How a network is described, loaded, checked and run; knows no camera and no animal's name."""

import os

# A barn has no cloud. From 1.29 on ONNX Runtime reports its use over the network unless it is told not to before its
# first import, which this package, and those that import it first, come before.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
