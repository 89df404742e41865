//! Connections that open, carry data both ways, and close.

use super::*;

#[test]
fn a_host_client_and_the_guest_talk_and_part() {
    let mut guest = Guest::new();
    let (mut client, port) = guest.connect(1024);
    client.write_all(b"ping").unwrap();
    let (header, data) = guest.next();
    assert_eq!((header.op, data.as_slice()), (Op::Rw as u16, &b"ping"[..]));
    guest.send(Op::Rw, 1024, port, 0, b"pong");
    let mut got = [0u8; 4];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"pong");
    drop(client);
    let (header, _) = guest.next();
    assert_eq!(header.op, Op::Shutdown as u16);
    assert_eq!(header.flags, SHUTDOWN_BOTH);
    guest.send(Op::Rst, 1024, port, 0, &[]);
    guest.quiet();
    assert_eq!(guest.metric("connections"), 0);
}

#[test]
fn a_half_close_leaves_the_other_direction() {
    let mut guest = Guest::new();
    let (mut client, port) = guest.connect(7);
    client.write_all(b"all I have").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.next().1, b"all I have");
    let (header, _) = guest.next();
    assert_eq!(header.op, Op::Shutdown as u16);
    assert_eq!(header.flags, SHUTDOWN_SEND);
    guest.send(Op::Rw, 7, port, 0, b"thanks");
    guest.send(Op::Shutdown, 7, port, SHUTDOWN_BOTH, &[]);
    assert_eq!(guest.next().0.op, Op::Rst as u16);
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"thanks");
    assert_eq!(guest.metric("connections"), 0);
}

#[test]
fn the_guests_half_close_reaches_the_host() {
    let mut guest = Guest::new();
    let (mut client, port) = guest.connect(7);
    guest.send(Op::Rw, 7, port, 0, b"bye");
    guest.send(Op::Shutdown, 7, port, SHUTDOWN_SEND, &[]);
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"bye");
    client.write_all(b"still here").unwrap();
    assert_eq!(guest.next().1, b"still here");
    // Data after the guest's own end of sending breaks the rules.
    guest.send(Op::Rw, 7, port, 0, b"more");
    assert_eq!(guest.next().0.op, Op::Rst as u16);
    assert_eq!(guest.metric("violations"), 1);
}

#[test]
fn the_guest_reaches_listeners_by_port_and_is_refused_elsewhere() {
    let mut guest = Guest::new();
    let listener = UnixListener::bind(format!("{}_1025", guest.path.display())).unwrap();
    guest.send(Op::Request, 5000, 1025, 0, &[]);
    let (header, _) = guest.next();
    assert_eq!(header.op, Op::Response as u16);
    assert_eq!((header.src_port, header.dst_port), (1025, 5000));
    let (mut host, _) = listener.accept().unwrap();
    guest.send(Op::Rw, 5000, 1025, 0, b"ready");
    let mut got = [0u8; 5];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"ready");
    guest.send(Op::Request, 5001, 1026, 0, &[]);
    let (header, _) = guest.next();
    assert_eq!(header.op, Op::Rst as u16);
    assert_eq!((header.src_port, header.dst_port), (1026, 5001));
}

#[test]
fn a_refused_port_closes_the_client() {
    let mut guest = Guest::new();
    let mut client = UnixStream::connect(&guest.path).unwrap();
    client.write_all(b"CONNECT 80\n").unwrap();
    let (request, _) = guest.next();
    guest.send(Op::Rst, 80, request.src_port, 0, &[]);
    let mut got = Vec::new();
    client.set_read_timeout(Some(TIMEOUT)).unwrap();
    client.read_to_end(&mut got).unwrap();
    assert!(got.is_empty());
}

#[test]
fn a_hundred_connections_echo_any_size() {
    let mut guest = Guest::new();
    let mut clients: Vec<_> = (0..100u32).map(|i| guest.connect(2000 + i)).collect();
    assert_eq!(guest.metric("connections"), 100);
    let size = |i: usize| (i * 37) % 3000 + 1;
    for (i, (client, _)) in clients.iter_mut().enumerate() {
        let data: Vec<u8> = (0..size(i)).map(|n| (n + i) as u8).collect();
        client.write_all(&data).unwrap();
    }
    let mut done = 0;
    while done < (0..100).map(size).sum() {
        let (h, data) = guest.next();
        if h.op == Op::Rw as u16 {
            done += data.len();
            guest.send(Op::Rw, h.dst_port, h.src_port, 0, &data);
        }
    }
    for (i, (client, _)) in clients.iter_mut().enumerate() {
        let mut got = vec![0u8; size(i)];
        client.read_exact(&mut got).unwrap();
        assert!(got.iter().enumerate().all(|(n, b)| *b == (n + i) as u8));
    }
}

#[test]
fn a_client_that_says_nothing_is_let_go() {
    let guest = Guest::new();
    let mut silent = UnixStream::connect(&guest.path).unwrap();
    silent.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut rude = UnixStream::connect(&guest.path).unwrap();
    rude.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    rude.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut got = Vec::new();
    let _ = rude.read_to_end(&mut got);
    let _ = silent.read_to_end(&mut got);
    assert!(got.is_empty());
    assert_eq!(guest.metric("timeouts"), 1);
}

#[test]
fn while_paused_nothing_moves_and_afterwards_all_does() {
    let mut guest = Guest::new();
    let (mut client, _) = guest.connect(7);
    guest.machine.device().quiesce().unwrap();
    client.write_all(b"later").unwrap();
    guest.quiet();
    guest.machine.device().resume().unwrap();
    assert_eq!(guest.next().1, b"later");
}

#[test]
fn a_guest_that_does_not_answer_is_given_up_and_told() {
    let mut guest = Guest::new();
    let mut client = UnixStream::connect(&guest.path).unwrap();
    client.set_read_timeout(Some(TIMEOUT)).unwrap();
    client.write_all(b"CONNECT 80\n").unwrap();
    let (request, _) = guest.next();
    assert_eq!(request.op, Op::Request as u16);
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert!(got.is_empty());
    let (reset, _) = guest.next();
    assert_eq!(reset.op, Op::Rst as u16);
    assert_eq!(reset.src_port, request.src_port);
    assert_eq!(guest.metric("connections"), 0);
    // Its late answer is of no connection.
    guest.send(Op::Response, 80, request.src_port, 0, &[]);
    assert_eq!(guest.next().0.op, Op::Rst as u16);
}
