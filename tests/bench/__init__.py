"""How fast the server is on this machine, against a raw ASGI echo and the bare store in the same run: `make bench`."""
