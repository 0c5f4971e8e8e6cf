//! Clients, servers and bystanders who mean harm.

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use lab::wait_until;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

use crate::resolver::{address, octets, response};
use crate::scene::{CLUSTER_DNS, Scene, data, framed, query, udp};

#[test]
fn answers_with_another_id_or_to_another_question_are_no_answers() {
    let scene = Scene::new(|asked| {
        let mut answer = response(asked);
        answer.add_answer(address(asked, 66, 300));
        let forged = octets(&answer).remove(0);
        let mut other_id = forged.clone();
        other_id[1] ^= 1;
        let mut other_question = forged.clone();
        other_question[13] ^= 1;
        let mut other_type = forged.clone();
        other_type[12 + asked.name.len() + 1 + 1] ^= 1;
        let mut no_response = forged.clone();
        no_response[2] &= 0x7f;
        let mut true_answer = response(asked);
        true_answer.add_answer(address(asked, 1, 300));
        let garbage = vec![0xff; 600];
        let forgeries = [other_id, other_question, other_type, no_response, garbage, Vec::new()];
        forgeries.into_iter().chain(octets(&true_answer)).collect()
    })
    .unwrap();
    let answer = scene.ask("bank.example.", RecordType::A).unwrap();
    assert_eq!(data(&answer), ["192.0.2.1"]);
}

#[test]
fn nobody_but_the_server_that_was_asked_can_answer() {
    let scene = Scene::new(|_| Vec::new()).unwrap();
    let asking = {
        let (client, octets) =
            (scene.client.clone(), query("held.example.", RecordType::A).to_vec().unwrap());
        std::thread::spawn(move || udp(&client, CLUSTER_DNS[0], octets))
    };
    wait_until(|| !scene.resolver.asked().is_empty()).unwrap();
    // Somebody who knows everything but has another address: even id and port are right.
    for asked in scene.resolver.asked() {
        let mut forged = response(&asked);
        forged.add_answer(address(&asked, 66, 300));
        let (forged, to) = (
            octets(&forged).remove(0),
            std::net::SocketAddr::new(scene.client.ipv4().into(), asked.from.port()),
        );
        scene
            .server
            .run(async move || {
                let socket = UdpSocket::bind("0.0.0.0:53").await?;
                socket.send_to(&forged, to).await?;
                Ok(())
            })
            .unwrap();
    }
    scene.resolver.release();
    let answer = Message::from_vec(&asking.join().unwrap().unwrap()).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn a_server_that_sends_what_is_no_message_is_as_good_as_none() {
    let scene = Scene::new(|asked| {
        // The right question, and then a record whose data goes on beyond the end.
        let mut answer = response(asked);
        answer.add_answer(address(asked, 1, 300));
        let mut octets = octets(&answer).remove(0);
        octets.truncate(octets.len() - 2);
        vec![octets]
    })
    .unwrap();
    let answer = scene.ask("broken.example.", RecordType::A).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn whatever_a_pod_sends_others_are_served() {
    let scene = Scene::new(|_| Vec::new()).unwrap();
    let to: std::net::SocketAddr = CLUSTER_DNS[0].parse().unwrap();
    scene
        .client
        .run(async move || {
            let socket = UdpSocket::bind("0.0.0.0:0").await?;
            socket.connect(to).await?;
            let header = [0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            let pointers = [&header[..], &[0xc0, 12], &[0, 1, 0, 1]].concat();
            let mut counts = header.to_vec();
            counts[4..].fill(0xff);
            let huge = [&header[..], &vec![0xc0; 9000]].concat();
            for round in 0..2000_u16 {
                let noise: Vec<_> = (0..round % 300).map(|at| ((at * 31) ^ round) as u8).collect();
                for octets in [&*pointers, &counts, &huge, &noise, &[]] {
                    // The kernel may be out of room, which is as good as sent.
                    drop(socket.send(octets).await);
                }
            }
            Ok(())
        })
        .unwrap();
    // Connections that never say a whole query.
    let lengths: [&[u8]; 4] = [&[0xff, 0xff, 1], &[0], &[0, 0, 0, 0, 0, 0], &[0, 4, 1, 2, 3, 4]];
    scene
        .client
        .run(async move || {
            let mut streams = Vec::new();
            for octets in lengths {
                let mut stream = TcpStream::connect(to).await?;
                stream.write_all(octets).await?;
                streams.push(stream);
            }
            for mut stream in streams {
                // Each is closed, sooner or later, without a word.
                let mut rest = Vec::new();
                drop(stream.read_to_end(&mut rest).await);
                anyhow::ensure!(rest.is_empty(), "{rest:?}");
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(data(&scene.ask("web.", RecordType::A).unwrap()), ["10.96.0.1"]);
    let other = udp(&scene.other, CLUSTER_DNS[0], query("web.", RecordType::A).to_vec().unwrap()).unwrap();
    assert_eq!(data(&Message::from_vec(&other).unwrap()), ["10.96.0.1"]);
}

#[test]
fn a_flood_of_queries_that_wait_is_refused_beyond_its_share_and_others_are_forwarded() {
    let scene = Scene::new(|asked| {
        if asked.name.contains("flood") {
            return Vec::new();
        }
        let mut answer = response(asked);
        answer.add_answer(address(asked, 1, 300));
        octets(&answer)
    })
    .unwrap();
    let to: std::net::SocketAddr = CLUSTER_DNS[0].parse().unwrap();
    let refused = scene.client.run(async move || {
        let socket = UdpSocket::bind("0.0.0.0:0").await?;
        socket.connect(to).await?;
        let mut buffer = [0; 512];
        for number in 0..800 {
            let octets = query(&format!("n{number}.flood."), RecordType::A).to_vec()?;
            socket.send(&octets).await?;
            if number % 50 == 49 {
                // In step with the proxy: what it looks at at once, it also answers at once.
                socket.send(&query("web.", RecordType::A).to_vec()?).await?;
                loop {
                    let length = socket.recv(&mut buffer).await?;
                    let answer = Message::from_vec(&buffer[..length])?;
                    if !answer.answers.is_empty() {
                        break;
                    }
                }
            }
        }
        Ok(())
    });
    refused.unwrap();
    let shed = || scene.ztunnel.metric("istio_dns_shed_total", r#"limit="pod_queries""#).unwrap();
    assert!(shed() >= 1.0);
    let asked = query("there.example.", RecordType::A).to_vec().unwrap();
    let answer = Message::from_vec(&udp(&scene.other, CLUSTER_DNS[0], asked).unwrap()).unwrap();
    assert_eq!(data(&answer), ["192.0.2.1"]);
}

#[test]
fn a_pod_has_no_more_connections_than_its_share() {
    let scene = Scene::new(|_| Vec::new()).unwrap();
    let to: std::net::SocketAddr = CLUSTER_DNS[0].parse().unwrap();
    scene
        .client
        .run(async move || {
            let mut streams = Vec::new();
            for _ in 0..80 {
                streams.push(TcpStream::connect(to).await?);
            }
            // The last one was closed without having idled; the first is served.
            let mut rest = Vec::new();
            drop(streams.pop().expect("eighty").read_to_end(&mut rest).await);
            streams[0].write_all(&framed(&query("web.", RecordType::A).to_vec()?)).await?;
            crate::scene::read_message(&mut streams[0]).await?;
            Ok(())
        })
        .unwrap();
    assert!(scene.ztunnel.metric("istio_dns_shed_total", "pod_connections").unwrap() >= 1.0);
}
