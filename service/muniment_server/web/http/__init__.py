"""HTTP/1.1 as this server speaks it: connections with deadlines, and the busiest requests without the application."""
