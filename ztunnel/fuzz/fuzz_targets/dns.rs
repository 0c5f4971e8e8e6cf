//! Any bytes of a pod are answered, refused, forwarded or ignored, and any answer of a name server can be passed on;
//! nothing panics. The first octet says how long the query is.

#![no_main]

mod dns_checks;

use libfuzzer_sys::fuzz_target;
use ztunnel::dns::Transport;

fuzz_target!(|octets: &[u8]| {
    let Some((length, rest)) = octets.split_first() else { return };
    let (query, answer) = rest.split_at(usize::from(*length).min(rest.len()));
    for transport in [Transport::Udp, Transport::Tcp] {
        dns_checks::exchange(query, answer, transport);
    }
});
