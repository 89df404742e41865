//! Credit, in both directions, and buffers that are too small.

use super::*;

#[test]
fn the_host_sends_no_more_than_the_guest_has_room_for() {
    let mut guest = Guest::new();
    let (client, port) = guest.connect(9);
    let sent: Vec<u8> = (0..200_000u32).map(|i| (i * 7 / 3) as u8).collect();
    let to_send = sent.clone();
    let mut writer = client.try_clone().unwrap();
    let thread = std::thread::spawn(move || writer.write_all(&to_send).unwrap());
    let mut got = Vec::new();
    let mut forwarded = 0u32;
    while got.len() < sent.len() {
        let (header, data) = guest.next();
        if header.op == Op::CreditRequest as u16 {
            // Full: exactly what was promised is in flight. Take it all and say so.
            assert_eq!(got.len() as u32 - forwarded, ALLOC);
            forwarded = got.len() as u32;
            let update = Header {
                src_cid: CID,
                dst_cid: HOST_CID,
                src_port: 9,
                dst_port: port,
                kind: TYPE_STREAM,
                op: Op::CreditUpdate as u16,
                buf_alloc: ALLOC,
                fwd_cnt: forwarded,
                ..Header::default()
            };
            guest.send_header(update, &[]);
            continue;
        }
        assert_eq!(header.op, Op::Rw as u16);
        got.extend_from_slice(&data);
        assert!(got.len() as u32 - forwarded <= ALLOC);
    }
    assert_eq!(got, sent);
    thread.join().unwrap();
}

#[test]
fn what_the_host_does_not_read_is_kept_up_to_the_promise_and_not_beyond() {
    let mut guest = Guest::new();
    let (mut client, port) = guest.connect(9);
    // Fill the socket's own buffer and then the backlog; the device never forwards more than the
    // guest is told, and the guest stops when it has no credit.
    let chunk: Vec<u8> = (0..4096u32).map(|i| i as u8).collect();
    let mut sent = 0u32;
    let mut credit = (0u32, 0u32);
    let deadline = Instant::now() + TIMEOUT;
    loop {
        assert!(Instant::now() < deadline);
        while let Some((h, _)) = guest.next_until(Instant::now() + Duration::from_millis(1)) {
            credit = (h.buf_alloc, h.fwd_cnt);
        }
        if credit.0 == 0 {
            guest.send(Op::CreditRequest, 9, port, 0, &[]);
            let (h, _) = guest.next();
            credit = (h.buf_alloc, h.fwd_cnt);
        }
        let free = credit.0 - (sent - credit.1);
        if free < 4096 {
            guest.send(Op::CreditRequest, 9, port, 0, &[]);
            let (h, _) = guest.next();
            assert_eq!(h.op, Op::CreditUpdate as u16);
            if (h.buf_alloc, h.fwd_cnt) == credit {
                break;
            }
            credit = (h.buf_alloc, h.fwd_cnt);
            continue;
        }
        guest.send(Op::Rw, 9, port, 0, &chunk);
        sent += 4096;
    }
    // Ends for the guest; the host still gets every byte.
    guest.send(Op::Shutdown, 9, port, SHUTDOWN_BOTH, &[]);
    while guest.next().0.op != Op::Rst as u16 {}
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert_eq!(got.len() as u32, sent);
    assert!(got.iter().enumerate().all(|(i, b)| *b == i as u8));
    assert_eq!(guest.metric("violations"), 0);
}

#[test]
fn more_than_the_promise_ends_the_connection() {
    let mut guest = Guest::new();
    let (client, port) = guest.connect(9);
    let chunk = vec![0u8; 65536];
    let mut reset = false;
    for _ in 0..64 {
        guest.send(Op::Rw, 9, port, 0, &chunk);
        let got = guest.next_until(Instant::now() + Duration::from_millis(1));
        if got.is_some_and(|(h, _)| h.op == Op::Rst as u16) {
            reset = true;
            break;
        }
    }
    assert!(reset);
    assert_eq!(guest.metric("violations"), 1);
    drop(client);
}

#[test]
fn refusals_wait_for_buffers_without_getting_lost() {
    let mut guest = Guest::new();
    // 1000 refused connects while only 64 receive buffers exist and none is recycled.
    let header = |port: u32| Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: port,
        dst_port: 2,
        kind: TYPE_STREAM,
        op: Op::Request as u16,
        ..Header::default()
    };
    let mem = guest.machine.mem.clone();
    let mut offered = 0u32;
    let mut refused = 0;
    while refused < 1000 {
        while offered < 1000 && guest.tx.room() > 0 {
            let at = TX + u64::from(offered) * 64;
            mem.write_slice(&header(offered).to_bytes(), GuestAddress(at))
                .unwrap();
            guest.tx.offer(&[(at, 44, false)]);
            offered += 1;
        }
        guest.tx.kick();
        let (h, _) = guest.next();
        assert_eq!(h.op, Op::Rst as u16);
        assert_eq!(h.dst_port, refused);
        refused += 1;
        while guest.tx.take().is_some() {}
    }
}

#[test]
fn buffers_without_room_for_data_hold_up_the_data_alone() {
    let mut guest = Guest::new();
    let (mut host, _) = guest.connect(7);
    guest.rx_bytes = HEADER as u32;
    for _ in 0..RX_COUNT {
        host.write_all(b"x").unwrap();
        assert_eq!(guest.next().1, b"x");
    }
    // All its buffers are headers now. Packets without data go on.
    host.write_all(b"y").unwrap();
    guest.rx_bytes = RX_BYTES;
    for _ in 0..RX_COUNT {
        guest.send(Op::Rw, 9999, 9999, 0, b"");
        assert_eq!(guest.next().0.op, Op::Rst as u16);
    }
    assert_eq!(guest.next().1, b"y");
}
