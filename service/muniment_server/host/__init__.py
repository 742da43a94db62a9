"""What this machine gives: room on its disks, and memory."""
