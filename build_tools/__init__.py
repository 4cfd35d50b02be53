"""What setup.py needs to build the C++ extension modules; nothing here is installed."""
