"""Bitcoin and OpenTimestamps calendars on this machine: a mined chain, its node and explorer faces, and calendars with faults."""
