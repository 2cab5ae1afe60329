"""Networks that make a vector of an image, with the parameter names of the libraries that publish their weights."""
