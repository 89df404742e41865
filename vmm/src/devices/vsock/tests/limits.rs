//! What a guest cannot do: break the protocol, reach what is not its own, take all there is.

use super::*;

#[test]
fn nonsense_is_answered_or_dropped_and_never_more() {
    let mut guest = Guest::new();
    let good = Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: 1,
        dst_port: 2,
        kind: TYPE_STREAM,
        op: Op::Rw as u16,
        ..Header::default()
    };
    // Of no connection, of an unknown type, of an unknown operation: reset.
    for header in [good, Header { kind: 9, ..good }, Header { op: 77, ..good }] {
        guest.send_header(header, &[]);
        assert_eq!(guest.next().0.op, Op::Rst as u16);
    }
    // From or to someone else, longer than the chain, a reset of nothing: silence.
    for header in [
        Header { src_cid: 3, ..good },
        Header { dst_cid: 9, ..good },
        Header { len: 5, ..good },
        Header {
            op: Op::Rst as u16,
            ..good
        },
    ] {
        guest.send_header(header, &[]);
    }
    guest.quiet();
    // Not even a header.
    guest.tx.offer(&[(TX, 43, false)]);
    guest.tx.kick();
    guest.tx.wait();
    guest.quiet();
    assert!(guest.metric("malformed") >= 6);
}

/// A container's way to its guest's agent, which trusts whoever comes by vsock: neither by an
/// address that is not the host's, nor in the name of one that is not the guest's own.
#[test]
fn the_guest_cannot_reach_itself_or_others_by_way_of_the_vmm() {
    let mut guest = Guest::new();
    let listener = UnixListener::bind(format!("{}_1024", guest.path.display())).unwrap();
    listener.set_nonblocking(true).unwrap();
    let (mut client, port) = guest.connect(1024);
    let own = (CID, HOST_CID);
    let elsewhere = [0, 1, HOST_CID, 3, CID, CID + 1, CID | 1 << 32, u64::MAX]
        .into_iter()
        .flat_map(|cid| [(CID, cid), (cid, HOST_CID), (HOST_CID, cid), (cid, cid)])
        .filter(|addresses| *addresses != own);
    let mut sent = 0;
    for (src_cid, dst_cid) in elsewhere {
        for op in 0..9 {
            for (src_port, dst_port) in [(5000, 1024), (1024, port), (port, 1024)] {
                let header = Header {
                    src_cid,
                    dst_cid,
                    src_port,
                    dst_port,
                    kind: TYPE_STREAM,
                    op,
                    buf_alloc: ALLOC,
                    ..Header::default()
                };
                guest.send_header(header, &[]);
                sent += 1;
            }
        }
    }
    guest.quiet();
    assert_eq!(guest.metric("malformed"), sent);
    assert_eq!(guest.metric("guest_connects"), 0);
    assert!(listener.accept().is_err(), "someone was let in");
    // The host's own connection has seen nothing of it.
    client.write_all(b"ping").unwrap();
    assert_eq!(guest.next().1, b"ping");
}

#[test]
fn the_guest_cannot_take_the_hosts_way_in() {
    let mut guest = Guest::new();
    let listener = UnixListener::bind(format!("{}_1025", guest.path.display())).unwrap();
    let mut accepted = Vec::new();
    let (mut granted, mut refused) = (0, 0);
    for port in 0..300 {
        guest.send(Op::Request, port, 1025, 0, &[]);
        match guest.next().0.op {
            op if op == Op::Response as u16 => {
                granted += 1;
                accepted.push(listener.accept().unwrap().0);
            }
            op if op == Op::Rst as u16 => refused += 1,
            op => panic!("operation {op}"),
        }
    }
    assert_eq!((granted, refused), (256, 44));
    let _client = guest.connect(1024);
    // What the guest ends it can open again.
    guest.send(Op::Rst, 0, 1025, 0, &[]);
    guest.send(Op::Request, 1000, 1025, 0, &[]);
    assert_eq!(guest.next().0.op, Op::Response as u16);
}
