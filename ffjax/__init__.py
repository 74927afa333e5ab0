"""ffjax: how forensics detectors break, how far the break carries, and what makes them hold."""
