#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use proptest::prelude::*;

use super::*;

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn response(ttls: &[u32], soa: Option<(u32, u32)>) -> Message {
    let mut message = Message::response(1, OpCode::Query);
    message.add_query(Query::query(name("web.example."), RecordType::A));
    for ttl in ttls {
        message.add_answer(Record::from_rdata(name("web.example."), *ttl, RData::A(A::new(1, 2, 3, 4))));
    }
    if let Some((ttl, minimum)) = soa {
        let soa = SOA::new(name("ns.example."), name("me.example."), 1, 2, 3, 4, minimum);
        message.add_authority(Record::from_rdata(name("example."), ttl, RData::SOA(soa)));
    }
    let mut edns = Edns::new();
    edns.set_max_payload(1232).set_dnssec_ok(true);
    message.set_edns(edns);
    message
}

#[test]
fn a_lifetime_is_the_shortest_of_the_answers_or_what_the_soa_says() {
    let lifetime = |ttls: &[u32], soa| contents(&response(ttls, soa).to_vec().unwrap()).unwrap().lifetime;
    assert_eq!(lifetime(&[300, 60, 90], None), 60);
    assert_eq!(lifetime(&[], Some((900, 20))), 20);
    assert_eq!(lifetime(&[], Some((15, 20))), 15);
    assert_eq!(lifetime(&[], None), 0, "a negative answer without SOA is not kept");
}

#[test]
fn ageing_touches_lifetimes_and_nothing_else() {
    let mut octets = response(&[300, 5], Some((900, 20))).to_vec().unwrap();
    age(&mut octets, 10);
    let aged = Message::from_vec(&octets).unwrap();
    let ttls: Vec<_> = aged.answers.iter().chain(&aged.authorities).map(|record| record.ttl).collect();
    assert_eq!(ttls, [290, 0, 890]);
    assert_eq!(aged.edns, response(&[], None).edns, "an OPT record has no lifetime");
}

#[test]
fn what_does_not_fit_is_dropped_from_the_end_and_the_opt_record_stays() {
    let whole = response(&[30; 40], Some((900, 20))).to_vec().unwrap();
    let mut cut = whole.clone();
    truncate(&mut cut, 512);
    assert!(cut.len() <= 512 && is_truncated(&cut));
    let message = Message::from_vec(&cut).unwrap();
    assert!(message.answers.len() > 20 && message.authorities.is_empty() && message.edns.is_some());
    let mut fits = whole.clone();
    truncate(&mut fits, whole.len());
    assert_eq!(fits, whole);
}

#[test]
fn an_answer_of_others_becomes_ours_by_its_flags() {
    let mut message = response(&[30], None);
    message.metadata.authoritative = true;
    message.metadata.authentic_data = true;
    message.metadata.recursion_desired = true;
    message.metadata.response_code = ResponseCode::NXDomain;
    let mut octets = message.to_vec().unwrap();
    own_flags(&mut octets, false);
    let ours = Message::from_vec(&octets).unwrap().metadata;
    assert!(!ours.authoritative && !ours.authentic_data && !ours.recursion_desired);
    assert!(ours.recursion_available);
    assert_eq!(ours.response_code, ResponseCode::NXDomain);
}

#[test]
fn questions_are_equal_whatever_the_case_of_the_name_and_nothing_else() {
    let ask = |text: &str, kind| {
        let mut message = Message::query();
        message.add_query(Query::query(name(text), kind));
        message.to_vec().unwrap()
    };
    let asked = ask("web.example.", RecordType::A);
    assert!(same_question(&asked, &ask("WEB.Example.", RecordType::A)));
    assert!(!same_question(&asked, &ask("web.example.", RecordType::AAAA)));
    assert!(!same_question(&asked, &ask("wec.example.", RecordType::A)));
    assert!(!same_question(&asked, &asked[..12]));
}

#[test]
fn a_name_that_points_to_itself_or_to_what_follows_is_no_question() {
    let header = [0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for name in [&[0xc0, 12][..], &[1, b'a', 0xc0, 12], &[0xc0, 20], &[0x40, 0], &[63, 1, 2]] {
        let octets = [&header, name, &[0, 1, 0, 1]].concat();
        assert_eq!(question_end(&octets), None, "{name:?}");
        assert_eq!(contents(&octets), None);
    }
    // 128 labels of one letter make 257 octets.
    let long = [&header[..], &[1, b'a'].repeat(128), &[0, 0, 1, 0, 1]].concat();
    assert_eq!(question_end(&long), None);
}

proptest! {
    #[test]
    fn any_octets_can_be_looked_at_aged_and_cut(
        octets in prop::collection::vec(any::<u8>(), 0..200), seconds in any::<u32>(), limit in 0_usize..200
    ) {
        let _ = contents(&octets);
        let _ = same_question(&octets, &octets);
        let mut changed = octets.clone();
        age(&mut changed, seconds);
        own_flags(&mut changed, seconds % 2 == 0);
        set_id(&mut changed, 1);
        prop_assert_eq!(changed.len(), octets.len());
        truncate(&mut changed, limit);
        // The question is never cut.
        prop_assert!(changed.len() <= limit.max(question_end(&octets).unwrap_or(0)));
    }
}
