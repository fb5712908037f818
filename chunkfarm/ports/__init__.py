"""What listens: the client port, the peer port and the file port."""
