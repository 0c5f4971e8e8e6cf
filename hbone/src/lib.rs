//! CONNECT tunnels (HBONE) over any byte stream: headers, streams, client, pool, server.
