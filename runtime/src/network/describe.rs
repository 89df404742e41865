//! What the interfaces of a pod's namespace have, written down for the guest: addresses, routes of
//! all tables, policy rules, neighbours. Which interfaces that are is `link`'s to say; kernel
//! parameters are in `sysctl`.

use std::{collections::HashMap, net::IpAddr};

use bulkhead_proto::agent;
use ipnet::IpNet;
use rtnetlink::{
    packet_core::Emitable as _,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
        route::{
            RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
            RouteNextHop, RouteNextHopFlags, RouteProtocol, RouteType,
        },
        rule::{RuleAttribute, RuleMessage},
    },
};

use super::{NetworkError, netlink::Netlink, pod_link::PodLink};

/// The kernel's main routing table, and that of the host's own addresses.
const MAIN_TABLE: u32 = RouteHeader::RT_TABLE_MAIN as u32;
const LOCAL_TABLE: u32 = 255;

/// What the CNI plugins gave these interfaces. The devices' hardware addresses are left open.
pub(super) async fn describe(
    net: &Netlink,
    links: &[PodLink],
) -> Result<agent::Network, NetworkError> {
    let names: HashMap<u32, &str> = links
        .iter()
        .map(|link| (link.index, link.name.as_str()))
        .collect();
    let all_routes = net.routes().await?;
    let connected = connected(&all_routes);
    let addresses = net.addresses().await?;
    let interfaces = links
        .iter()
        .map(|link| interface(link, &addresses, &connected))
        .collect();
    let mut routes: Vec<_> = all_routes
        .iter()
        .flat_map(|message| routes(message, &names))
        .collect();
    // Routes on the link come before those whose gateway they reach.
    routes.sort_by_key(|route| !route.gateway.is_empty());
    let rules = net.rules().await?;
    let neighbours = net.neighbours().await?;
    Ok(agent::Network {
        interfaces,
        routes,
        neighbours: neighbours
            .iter()
            .filter_map(|message| neighbour(message, &names))
            .collect(),
        rules: rules.iter().filter_map(rule).map(Into::into).collect(),
        sysctls: Vec::new(),
    })
}

/// `aa:bb:cc:dd:ee:ff`.
fn mac_text(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<Vec<_>>()
        .join(":")
}

fn interface(
    link: &PodLink,
    addresses: &[AddressMessage],
    connected: &[(u32, IpNet)],
) -> agent::Interface {
    let mut interface = agent::Interface {
        mac: String::new(),
        name: link.name.clone(),
        mtu: link.mtu,
        addresses: Vec::new(),
        hardware_address: link.mac.map(|mac| mac_text(&mac)).unwrap_or_default(),
        addresses_without_route: Vec::new(),
        no_arp: link.no_arp,
    };
    let of_link = |message: &&AddressMessage| message.header.index == link.index;
    for message in addresses.iter().filter(of_link) {
        let Some(address) = address(message, link) else {
            continue;
        };
        let text = address.to_string();
        let network = address.trunc();
        // One address alone is no network.
        let routed = connected.contains(&(link.index, network))
            || address.prefix_len() == address.max_prefix_len();
        if !routed {
            interface.addresses_without_route.push(text.clone());
        }
        interface.addresses.push(text);
    }
    interface
}

/// The networks that the kernel's own routes lead to, by interface: an address brings one along, and
/// a plugin may take it away (`sbr` moves it to another table).
fn connected(routes: &[RouteMessage]) -> Vec<(u32, IpNet)> {
    let network = |message: &RouteMessage| {
        let (mut index, mut network) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Oif(oif) => index = Some(*oif),
                RouteAttribute::Destination(address) => {
                    let length = message.header.destination_prefix_length;
                    network = IpNet::new(ip(address)?, length).ok();
                }
                _ => {}
            }
        }
        Some((index?, network?))
    };
    let own = |message: &&RouteMessage| {
        message.header.protocol == RouteProtocol::Kernel && table_of(message) == MAIN_TABLE
    };
    routes.iter().filter(own).filter_map(network).collect()
}

/// An address that was given to an interface; `None` for what the guest makes itself: its
/// link-local address, and what it learns from routers.
fn address(message: &AddressMessage, link: &PodLink) -> Option<IpNet> {
    let of = |wanted_local: bool| {
        message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Local(address) if wanted_local => Some(*address),
                AddressAttribute::Address(address) if !wanted_local => Some(*address),
                _ => None,
            })
    };
    // IFA_LOCAL is the interface's own where IFA_ADDRESS is the peer's (point to point).
    let address = of(true).or_else(|| of(false))?;
    if let IpAddr::V6(v6) = address {
        let permanent = message.header.flags.contains(AddressHeaderFlags::Permanent);
        let own = link.mac.is_some_and(|mac| v6.octets() == link_local(mac));
        if !permanent || own {
            return None;
        }
    }
    IpNet::new(address, message.header.prefix_len).ok()
}

/// The link-local address that a kernel makes from a hardware address (RFC 4291, appendix A).
fn link_local([a, b, c, d, e, f]: [u8; 6]) -> [u8; 16] {
    let mut address = [0; 16];
    let (prefix, identifier) = address.split_at_mut(8);
    prefix.copy_from_slice(&[0xfe, 0x80, 0, 0, 0, 0, 0, 0]);
    identifier.copy_from_slice(&[a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    address
}

/// The table of a route: the attribute, which has room for large numbers, or the header.
fn table_of(message: &RouteMessage) -> u32 {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        })
        .unwrap_or_else(|| message.header.table.into())
}

/// A route that a plugin made, one for each of its next hops; none for the kernel's own (they come
/// with the addresses), those learnt from routers, and those over other interfaces.
fn routes(message: &RouteMessage, names: &HashMap<u32, &str>) -> Vec<agent::Route> {
    let header = &message.header;
    let table = table_of(message);
    let own = header.protocol == RouteProtocol::Kernel && table == MAIN_TABLE;
    if own || table == LOCAL_TABLE || header.protocol == RouteProtocol::Ra {
        return Vec::new();
    }
    let device_less = match header.kind {
        RouteType::Unicast => false,
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit | RouteType::Throw => {
            true
        }
        _ => return Vec::new(),
    };
    let mut found = agent::Route {
        scope: u8::from(header.scope).into(),
        onlink: header.flags.contains(RouteFlags::Onlink),
        table: if table == MAIN_TABLE { 0 } else { table },
        kind: u8::from(header.kind).into(),
        ..agent::Route::default()
    };
    let mut index = None;
    let mut hops: &[RouteNextHop] = &[];
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => index = Some(*oif),
            RouteAttribute::Destination(address) => {
                let Some(address) = ip(address) else {
                    return Vec::new();
                };
                found.destination = format!("{address}/{}", header.destination_prefix_length);
            }
            RouteAttribute::Gateway(address) => found.gateway = ip_text(address),
            RouteAttribute::PrefSource(address) => found.source = ip_text(address),
            RouteAttribute::Priority(metric) => found.metric = *metric,
            RouteAttribute::MultiPath(all) => hops = all,
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    match metric {
                        RouteMetric::Mtu(mtu) => found.mtu = *mtu,
                        RouteMetric::Advmss(advmss) => found.advmss = *advmss,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if found.destination.is_empty() {
        // A default route over the link itself needs its family said.
        let any = if header.address_family == AddressFamily::Inet {
            "0.0.0.0/0"
        } else {
            "::/0"
        };
        found.destination = any.to_owned();
    }
    if device_less {
        return vec![found];
    }
    if hops.is_empty() {
        let Some(name) = index.and_then(|index| names.get(&index)) else {
            return Vec::new();
        };
        found.interface = (*name).to_owned();
        return vec![found];
    }
    let over = |hop: &RouteNextHop| {
        let mut route = found.clone();
        route.interface = (*names.get(&hop.interface_index)?).to_owned();
        route.onlink |= hop.flags.contains(RouteNextHopFlags::Onlink);
        for attribute in &hop.attributes {
            if let RouteAttribute::Gateway(address) = attribute {
                route.gateway = ip_text(address);
            }
        }
        Some(route)
    };
    hops.iter().filter_map(over).collect()
}

/// A policy rule that a plugin made; none for the three every namespace has, and that of VRFs.
fn rule(message: &RuleMessage) -> Option<Vec<u8>> {
    let kernel = RuleAttribute::Protocol(RouteProtocol::Kernel);
    if message.attributes.contains(&kernel) {
        return None;
    }
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    Some(bytes)
}

/// A neighbour that a plugin set for good; the rest the guest learns.
fn neighbour(message: &NeighbourMessage, names: &HashMap<u32, &str>) -> Option<agent::Neighbour> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                address = Some(ip.to_string());
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                address = Some(ip.to_string());
            }
            NeighbourAttribute::LinkLayerAddress(bytes) if bytes.len() == 6 => {
                mac = Some(mac_text(bytes));
            }
            _ => {}
        }
    }
    Some(agent::Neighbour {
        interface: (*names.get(&message.header.ifindex)?).to_owned(),
        address: address?,
        mac: mac?,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

fn ip_text(address: &RouteAddress) -> String {
    ip(address).map(|ip| ip.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn message(protocol: RouteProtocol, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.protocol = protocol;
        message.header.kind = RouteType::Unicast;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.destination_prefix_length = 16;
        message.attributes = attributes;
        message
    }

    fn inet(text: &str) -> RouteAddress {
        RouteAddress::Inet(text.parse::<Ipv4Addr>().unwrap())
    }

    fn of(message: &RouteMessage) -> Vec<agent::Route> {
        routes(message, &HashMap::from([(2, "eth0"), (5, "net1")]))
    }

    #[test]
    fn a_plugins_route_keeps_its_metrics_and_its_interface() {
        let found = of(&message(
            RouteProtocol::Boot,
            vec![
                RouteAttribute::Oif(5),
                RouteAttribute::Destination(inet("10.9.0.0")),
                RouteAttribute::Gateway(inet("10.1.0.1")),
                RouteAttribute::Priority(7),
                RouteAttribute::Metrics(vec![RouteMetric::Mtu(1400), RouteMetric::Advmss(1360)]),
            ],
        ));
        let [found] = found.as_slice() else {
            panic!("{found:?}")
        };
        assert_eq!(
            (
                found.destination.as_str(),
                found.gateway.as_str(),
                found.interface.as_str()
            ),
            ("10.9.0.0/16", "10.1.0.1", "net1")
        );
        assert_eq!((found.metric, found.mtu, found.advmss), (7, 1400, 1360));
        assert_eq!((found.table, found.kind), (0, 1));
    }

    #[test]
    fn the_kernels_and_others_routes_are_left_out() {
        let on_link = vec![
            RouteAttribute::Oif(2),
            RouteAttribute::Destination(inet("10.1.0.0")),
        ];
        assert!(of(&message(RouteProtocol::Kernel, on_link.clone())).is_empty());
        assert!(of(&message(RouteProtocol::Ra, on_link.clone())).is_empty());
        assert_eq!(of(&message(RouteProtocol::Static, on_link)).len(), 1);
        let other_link = vec![RouteAttribute::Oif(3)];
        assert!(of(&message(RouteProtocol::Static, other_link)).is_empty());
        let local = vec![RouteAttribute::Oif(2), RouteAttribute::Table(255)];
        assert!(of(&message(RouteProtocol::Kernel, local)).is_empty());
    }

    #[test]
    fn other_tables_come_along_whoever_filled_them() {
        let moved = vec![RouteAttribute::Oif(5), RouteAttribute::Table(1_000)];
        let found = of(&message(RouteProtocol::Kernel, moved));
        assert_eq!(found[0].table, 1_000);
    }

    #[test]
    fn a_default_route_over_the_link_names_its_family() {
        let found = of(&message(
            RouteProtocol::Static,
            vec![RouteAttribute::Oif(2)],
        ));
        assert_eq!(found[0].destination, "0.0.0.0/0");
    }

    #[test]
    fn next_hops_become_routes_and_a_refusal_needs_no_interface() {
        let hop = |index, gateway| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = index;
            hop.attributes = vec![RouteAttribute::Gateway(inet(gateway))];
            hop
        };
        let hops = vec![hop(2, "10.1.0.1"), hop(9, "10.2.0.1"), hop(5, "10.3.0.1")];
        let found = of(&message(
            RouteProtocol::Boot,
            vec![RouteAttribute::MultiPath(hops)],
        ));
        let found: Vec<_> = found
            .iter()
            .map(|route| (route.interface.as_str(), route.gateway.as_str()))
            .collect();
        assert_eq!(found, [("eth0", "10.1.0.1"), ("net1", "10.3.0.1")]);
        let mut hole = message(
            RouteProtocol::Static,
            vec![RouteAttribute::Destination(inet("10.4.0.0"))],
        );
        hole.header.kind = RouteType::BlackHole;
        let found = of(&hole);
        assert_eq!((found[0].kind, found[0].interface.as_str()), (6, ""));
    }

    #[test]
    fn an_address_whose_network_was_moved_says_so() {
        let link = PodLink {
            index: 5,
            name: "net1".to_owned(),
            mtu: 1500,
            mac: Some([2, 0, 0, 0, 0, 5]),
            no_arp: false,
        };
        let given = |text: &str, length, permanent| {
            let mut message = AddressMessage::default();
            message.header.index = 5;
            message.header.prefix_len = length;
            if permanent {
                message.header.flags = AddressHeaderFlags::Permanent;
            }
            message.attributes = vec![AddressAttribute::Address(text.parse().unwrap())];
            message
        };
        let all = [
            given("10.1.0.2", 16, true),
            given("10.2.0.2", 16, true),
            given("10.3.0.2", 32, true),
            // What its kernel makes and learns.
            given("fe80::ff:fe00:5", 64, true),
            given("2001:db8::9", 64, false),
            // What a plugin made of the same kind.
            given("fe80::1", 64, true),
        ];
        let connected = [(5, "10.1.0.0/16".parse().unwrap())];
        let found = interface(&link, &all, &connected);
        assert_eq!(
            found.addresses,
            ["10.1.0.2/16", "10.2.0.2/16", "10.3.0.2/32", "fe80::1/64"]
        );
        assert_eq!(found.addresses_without_route, ["10.2.0.2/16", "fe80::1/64"]);
    }
}
