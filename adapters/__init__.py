"""What is trained: the frozen backbone, the adapters around it, and their files."""
