"""Side-by-side timings against peers, and long NUTS references. Anyone can run them."""
