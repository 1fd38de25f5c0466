"""What `compare_methods.py` is made of: the methods, their guidance scales, the page."""
