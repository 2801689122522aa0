"""Measures of generated pictures, each from its own file; importing this brings in none of them."""
