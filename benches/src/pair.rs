//! Pairs of well-known TLS proxies, set up to do the same work as two node proxies: mutual TLS 1.3 with
//! AES-128-GCM between them, both certificates verified, plain TCP on the outer sides, two threads or workers each,
//! one log line for each connection.
//!
//! ```text
//!   client pod                           server pod
//!     app -> lo:PORT -> proxy == TLS == proxy:PORT+1000 -> lo:PORT -> server
//! ```
//!
//! They run inside the pods, so that packets take the same ways as with redirection into the mesh. The client dials
//! the proxy itself.

use std::fs;
use std::net::Ipv4Addr;

use lab::{Pod, Process, Result};

use crate::certificates::{Certificates, SERVER_NAME};
use crate::origin::{self, BULK, HTTP};
use crate::path::THREADS;
use crate::programs;

/// Ports that are proxied.
const PORTS: [u16; 2] = [HTTP, BULK];

/// The one cipher suite of all measured connections between proxies.
const CIPHER_SUITE: &str = "TLS_AES_128_GCM_SHA256";

/// Where the server's side accepts TLS for a port.
fn tls_port(port: u16) -> u16 {
    port + 1000
}

/// Starts haproxy on both sides: the client's, then the server's.
pub(crate) fn haproxy(client: &Pod, server: &Pod) -> Result<[Process; 2]> {
    let files = Certificates::create(client.node().directory())?;
    let (authority, own) = (files.authority.display(), files.client.display());
    let to_far = PORTS.map(|port| {
        format!(
            "listen {port}\n bind :{port}\n server far {}:{} ssl verify required ca-file {authority} crt {own} \
             sni str({SERVER_NAME}) verifyhost {SERVER_NAME}\n",
            server.ipv4(),
            tls_port(port),
        )
    });
    let own = files.server.display();
    let to_origin = PORTS.map(|port| {
        format!(
            "listen {port}\n bind :{} ssl verify required ca-file {authority} crt {own}\n server app {}:{port}\n",
            tls_port(port),
            Ipv4Addr::LOCALHOST,
        )
    });
    Ok([start_haproxy(client, &to_far.concat())?, start_haproxy(server, &to_origin.concat())?])
}

fn start_haproxy(pod: &Pod, listeners: &str) -> Result<Process> {
    let file = pod.node().directory().join("haproxy.cfg");
    let common = format!(
        "global
           nbthread {THREADS}
           maxconn 4096
           log stdout format raw local0 info
           ssl-default-bind-options ssl-min-ver TLSv1.3
           ssl-default-bind-ciphersuites {CIPHER_SUITE}
           ssl-default-server-options ssl-min-ver TLSv1.3
           ssl-default-server-ciphersuites {CIPHER_SUITE}
         defaults
           mode tcp
           log global
           log-format \"carried %U %B\"
           timeout connect 10s
           timeout client 1h
           timeout server 1h
        "
    );
    fs::write(&file, format!("{common}\n{listeners}"))?;
    let mut command = pod.command(programs::find("haproxy")?);
    command.args(["-db", "-f"]).arg(file);
    pod.start("haproxy", command)
}

/// Starts nginx with its stream module on both sides: the client's, then the server's.
pub(crate) fn nginx(client: &Pod, server: &Pod) -> Result<[Process; 2]> {
    let files = Certificates::create(client.node().directory())?;
    let (authority, own) = (files.authority.display(), files.client.display());
    let to_far = PORTS.map(|port| {
        format!("server {{ listen {port} reuseport; proxy_pass {}:{}; }}\n", server.ipv4(), tls_port(port))
    });
    let client_side = format!(
        "proxy_ssl on; proxy_ssl_protocols TLSv1.3; proxy_ssl_conf_command Ciphersuites {CIPHER_SUITE};
         proxy_ssl_certificate {own}; proxy_ssl_certificate_key {own};
         proxy_ssl_verify on; proxy_ssl_trusted_certificate {authority}; proxy_ssl_name {SERVER_NAME};
         {}",
        to_far.concat()
    );
    let own = files.server.display();
    let to_origin = PORTS.map(|port| {
        let (listen, app) = (tls_port(port), Ipv4Addr::LOCALHOST);
        format!("server {{ listen {listen} ssl reuseport; proxy_pass {app}:{port}; }}\n")
    });
    let server_side = format!(
        "ssl_protocols TLSv1.3; ssl_conf_command Ciphersuites {CIPHER_SUITE};
         ssl_certificate {own}; ssl_certificate_key {own};
         ssl_verify_client on; ssl_client_certificate {authority};
         {}",
        to_origin.concat()
    );
    Ok([start_nginx(client, &client_side)?, start_nginx(server, &server_side)?])
}

fn start_nginx(pod: &Pod, servers: &str) -> Result<Process> {
    let module = programs::nginx_stream_module()?;
    let configuration = format!(
        "{module}
         user root;
         worker_processes {THREADS};
         events {{ worker_connections 8192; }}
         stream {{
             log_format carried 'carried $bytes_received $bytes_sent';
             access_log /dev/stdout carried;
             proxy_connect_timeout 10s;
             proxy_timeout 1h;
             {servers}
         }}"
    );
    origin::start_nginx(pod, "proxy", &configuration)
}
