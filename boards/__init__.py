"""docs/jetson.md, run on an emulated board by ``rehearse.sh``."""
