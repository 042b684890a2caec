"""How many times as fast as the published procedure each engine and precision is, part by part."""
