"""How a network is described, loaded, checked and run; knows no camera and no animal's name."""
