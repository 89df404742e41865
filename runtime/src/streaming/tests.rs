//! The server against hostile and plain clients.
