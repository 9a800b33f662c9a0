"""Faults that have broken other systems, planted one by one: the suite must catch each of them."""
