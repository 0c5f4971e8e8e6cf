//! The parts of a DNS message (RFC 1035 section 4.1) that are looked at or changed in place.
//!
//! What is forwarded goes through byte for byte, whatever record types it holds: a decoder would lose what it does not
//! know. Only the id, four flags, the case of the question, lifetimes that have passed and records that do not fit are
//! touched. Every function takes any bytes.

use std::net::IpAddr;
use std::ops::Range;

/// Octets of the header.
pub(crate) const HEADER: usize = 12;

const CLASS_IN: u16 = 1;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const TYPE_SOA: u16 = 6;
const TYPE_OPT: u16 = 41;
const TYPE_TSIG: u16 = 250;

/// RCODEs of RFC 1035 section 4.1.1.
pub(crate) const NOERROR: u8 = 0;
/// The server could not answer.
pub(crate) const SERVFAIL: u8 = 2;
/// There is no such name.
pub(crate) const NXDOMAIN: u8 = 3;

const QR: u8 = 0x80;
const AA: u8 = 0x04;
const TC: u8 = 0x02;
const RD: u8 = 0x01;
const RA: u8 = 0x80;
const AD: u8 = 0x20;

/// A number of two octets at `at`.
pub(crate) fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*message.get(at..)?.first_chunk()?))
}

fn u32_at(message: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*message.get(at..)?.first_chunk()?))
}

fn put(message: &mut [u8], at: usize, octets: &[u8]) {
    if let Some(place) = message.get_mut(at..at + octets.len()) {
        place.copy_from_slice(octets);
    }
}

/// Writes the id.
pub(crate) fn set_id(message: &mut [u8], id: u16) {
    put(message, 0, &id.to_be_bytes());
}

/// True for a response.
pub(crate) fn is_response(message: &[u8]) -> bool {
    message.get(2).is_some_and(|flags| flags & QR != 0)
}

/// The OPCODE.
pub(crate) fn opcode(message: &[u8]) -> u8 {
    message.get(2).map_or(0, |flags| flags >> 3 & 0xf)
}

/// Whether recursion is desired.
pub(crate) fn recursion_desired(message: &[u8]) -> bool {
    message.get(2).is_some_and(|flags| flags & RD != 0)
}

/// Asks for recursion, as everything that is forwarded must.
pub(crate) fn desire_recursion(message: &mut [u8]) {
    if let Some(flags) = message.get_mut(2) {
        *flags |= RD;
    }
}

/// True when the sender had more to say than fitted.
pub(crate) fn is_truncated(message: &[u8]) -> bool {
    message.get(2).is_some_and(|flags| flags & TC != 0)
}

/// The RCODE of the header, without the upper bits that an OPT record may add.
pub(crate) fn rcode(message: &[u8]) -> u8 {
    message.get(3).map_or(SERVFAIL, |flags| flags & 0xf)
}

/// Makes a response of somebody else's one of ours: not authoritative, of a server that recurses, not authenticated.
pub(crate) fn own_flags(message: &mut [u8], recursion_desired: bool) {
    if let [_, _, high, low, ..] = message {
        *high = *high & !(AA | RD) | if recursion_desired { RD } else { 0 };
        *low = (*low | RA) & !AD;
    }
}

/// Where the question of a message with one question ends. Its name has to be spelt out, as there is nothing before it
/// that a pointer could mean.
pub(crate) fn question_end(message: &[u8]) -> Option<usize> {
    if u16_at(message, 4)? != 1 {
        return None;
    }
    let mut at = HEADER;
    loop {
        match *message.get(at)? {
            0 => break,
            length @ 1..=63 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
    // The root label, QTYPE, QCLASS.
    let end = at + 5;
    (end <= message.len() && at + 1 - HEADER <= 255).then_some(end)
}

/// True when both ask the same; names are equal whatever the case of their letters.
pub(crate) fn same_question(one: &[u8], other: &[u8]) -> bool {
    match (question_end(one), question_end(other)) {
        // Lengths of labels are below the letters, types and classes are compared as they are.
        (Some(end), Some(other_end)) if end == other_end => {
            one[HEADER..end - 4].eq_ignore_ascii_case(&other[HEADER..end - 4])
                && one[end - 4..end] == other[end - 4..end]
        }
        _ => false,
    }
}

/// The section of a record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Section {
    Answer,
    Authority,
    Additional,
}

/// A record's place in a message.
struct Record {
    section: Section,
    /// From its owner to the end of its data.
    range: Range<usize>,
    kind: u16,
    ttl_at: usize,
    ttl: u32,
}

/// All records of a message with one question, in order. Ends with `None` at one that is cut.
fn records(message: &[u8]) -> Option<impl Iterator<Item = Option<Record>>> {
    let mut at = question_end(message)?;
    let mut left = [
        (Section::Answer, u16_at(message, 6)?),
        (Section::Authority, u16_at(message, 8)?),
        (Section::Additional, u16_at(message, 10)?),
    ];
    Some(std::iter::from_fn(move || {
        let (section, count) = left.iter_mut().find(|(_, count)| *count > 0)?;
        *count -= 1;
        let record = record(message, at, *section);
        match &record {
            Some(record) => at = record.range.end,
            // What follows cannot be found.
            None => left.iter_mut().for_each(|(_, count)| *count = 0),
        }
        Some(record)
    }))
}

fn record(message: &[u8], start: usize, section: Section) -> Option<Record> {
    let mut at = start;
    loop {
        match *message.get(at)? {
            0 => {
                at += 1;
                break;
            }
            length @ 1..=63 => at += 1 + usize::from(length),
            // A pointer ends the name; where it leads is nothing to us.
            0xc0.. => {
                at += 2;
                break;
            }
            _ => return None,
        }
    }
    let data_at = at + 10;
    let end = data_at + usize::from(u16_at(message, at + 8)?);
    (end <= message.len()).then_some(Record {
        section,
        range: start..end,
        kind: u16_at(message, at)?,
        ttl_at: at + 4,
        ttl: u32_at(message, at + 4)?,
    })
}

/// What a message with one question holds.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Contents {
    /// Records in the answer section.
    pub(crate) answers: usize,
    /// How many seconds it may be kept: the shortest life of an answer, or of a negative answer as its SOA record says
    /// (RFC 2308 section 5); 0 when that cannot be told.
    pub(crate) lifetime: u32,
    /// Where the last record ends.
    pub(crate) end: usize,
    /// A record signs the message as it is.
    pub(crate) is_signed: bool,
}

/// Reads all records; `None` when one is cut.
pub(crate) fn contents(message: &[u8]) -> Option<Contents> {
    let mut contents = Contents { end: question_end(message)?, ..Contents::default() };
    let (mut positive, mut negative) = (None::<u32>, None::<u32>);
    for record in records(message)? {
        let record = record?;
        contents.end = record.range.end;
        match (record.section, record.kind) {
            (Section::Answer, _) => {
                contents.answers += 1;
                positive = Some(positive.unwrap_or(u32::MAX).min(record.ttl));
            }
            (Section::Authority, TYPE_SOA) => {
                // MINIMUM is the last field.
                let minimum = u32_at(message, record.range.end.checked_sub(4)?)?;
                negative = Some(record.ttl.min(minimum));
            }
            (Section::Additional, TYPE_TSIG) => contents.is_signed = true,
            _ => {}
        }
    }
    contents.lifetime = match positive {
        // A chain of CNAME records that leads to nothing is negative too.
        Some(positive) => positive.min(negative.unwrap_or(u32::MAX)),
        None => negative.unwrap_or(0),
    };
    Some(contents)
}

/// Appends an address record for each of `addresses` to a message that ends with its answer section, owned by the target of
/// its last record, a CNAME record, if it has one, else by the name asked for. Owners are pointers: a large answer is as
/// short as it can be, which the encoder's limit on compression (names beyond some number are spelt out) does not allow.
pub(crate) fn add_addresses(message: &mut Vec<u8>, ttl: u32, addresses: impl Iterator<Item = IpAddr>) {
    let last = records(message).and_then(|records| records.flatten().last());
    let owner = last.map_or(HEADER, |record| record.ttl_at + 6);
    // Both are within the first 600 octets of a message that begins with one question.
    let pointer = u16::try_from(owner).unwrap_or_default() | 0xc000;
    let mut count = u16_at(message, 6).unwrap_or_default();
    for address in addresses {
        let (kind, octets) = match address {
            IpAddr::V4(address) => (TYPE_A, &address.octets()[..]),
            IpAddr::V6(address) => (TYPE_AAAA, &address.octets()[..]),
        };
        message.extend_from_slice(&pointer.to_be_bytes());
        message.extend_from_slice(&kind.to_be_bytes());
        message.extend_from_slice(&CLASS_IN.to_be_bytes());
        message.extend_from_slice(&ttl.to_be_bytes());
        // Four or sixteen.
        message.extend_from_slice(&[0, octets.len() as u8]);
        message.extend_from_slice(octets);
        count = count.saturating_add(1);
    }
    put(message, 6, &count.to_be_bytes());
}

/// Appends an OPT record (RFC 6891 section 6.1.2) to a message without additional records.
pub(crate) fn add_opt(message: &mut Vec<u8>, payload: u16, dnssec_ok: bool) {
    message.push(0);
    message.extend_from_slice(&TYPE_OPT.to_be_bytes());
    message.extend_from_slice(&payload.to_be_bytes());
    let flags = if dnssec_ok { 0x8000_u32 } else { 0 };
    message.extend_from_slice(&flags.to_be_bytes());
    message.extend_from_slice(&[0, 0]);
    put(message, 10, &[0, 1]);
}

/// Takes `seconds` off every lifetime.
pub(crate) fn age(message: &mut [u8], seconds: u32) {
    let places: Vec<_> = match records(message) {
        Some(records) => records
            .flatten()
            // What stands there in an OPT record is no lifetime (RFC 6891 section 6.1.3).
            .filter(|record| record.kind != TYPE_OPT)
            .map(|record| (record.ttl_at, record.ttl.saturating_sub(seconds)))
            .collect(),
        None => return,
    };
    for (at, ttl) in places {
        put(message, at, &ttl.to_be_bytes());
    }
}

/// Makes a response fit `limit` octets: whole records are dropped from its end, but for the OPT record, and TC says so
/// (RFC 2181 section 9).
pub(crate) fn truncate(message: &mut Vec<u8>, limit: usize) {
    if message.len() <= limit {
        return;
    }
    let Some(mut end) = question_end(message) else { return message.clear() };
    let mut opt: Option<Range<usize>> = None;
    let mut answers = Vec::new();
    for record in records(message).into_iter().flatten().flatten() {
        match (record.section, record.kind) {
            (Section::Additional, TYPE_OPT) => opt = Some(record.range),
            (Section::Answer, _) => answers.push(record.range.end),
            _ => {}
        }
    }
    let opt = opt.and_then(|range| message.get(range)).filter(|opt| end + opt.len() <= limit);
    let opt = opt.map(<[u8]>::to_vec).unwrap_or_default();
    let mut kept: u16 = 0;
    for answer_end in answers {
        if answer_end + opt.len() > limit {
            break;
        }
        end = answer_end;
        kept += 1;
    }
    message.truncate(end);
    let additional = u16::from(!opt.is_empty());
    message.extend_from_slice(&opt);
    put(message, 6, &kept.to_be_bytes());
    put(message, 8, &[0, 0]);
    put(message, 10, &additional.to_be_bytes());
    if let Some(flags) = message.get_mut(2) {
        *flags |= TC;
    }
}

#[cfg(test)]
mod tests;
