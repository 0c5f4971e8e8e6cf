//! Pods' network namespaces: sockets inside them, ZDS, and the packet rules that redirect their traffic.
