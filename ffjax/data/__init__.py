"""Images with labels: the embedded procedural face-forgery set, and what reads other people's folders."""
