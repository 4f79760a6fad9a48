"""The files a model is given away as."""
