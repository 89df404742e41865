//! A network as asked for, checked and in types. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use bulkhead_proto::agent;
use rtnetlink::packet_core::Parseable as _;
use rtnetlink::packet_route::route::{RouteHeader, RouteProtocol, RouteType};
use rtnetlink::packet_route::rule::{RuleAttribute, RuleFlags, RuleMessage};

use super::{NetError, sysctl};

/// Bytes of `struct fib_rule_hdr`.
const RULE_HEADER: usize = 12;
/// The longest name of an interface (IFNAMSIZ less the zero).
const MAX_NAME: usize = 15;

/// An address and the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Prefix {
    /// The address.
    pub address: IpAddr,
    /// The length, within what the family allows.
    pub length: u8,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Which device.
    pub mac: [u8; 6],
    /// The address it gets in its place, if another.
    pub hardware_address: Option<[u8; 6]>,
    /// The name it gets.
    pub name: String,
    /// 0 leaves the device's.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: Vec<Prefix>,
    /// Those of them that bring no route to their network along.
    pub without_route: Vec<Prefix>,
    /// It does not ask for hardware addresses.
    pub no_arp: bool,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Through which interface, by name; none for a kind that needs none.
    pub interface: Option<String>,
    /// Where to; a prefix of length 0 is the default route.
    pub destination: Prefix,
    /// Through whom; none is on-link.
    pub gateway: Option<IpAddr>,
    /// From which address.
    pub source: Option<IpAddr>,
    /// 0 is the kernel's choice.
    pub metric: u32,
    /// 0 is the interface's.
    pub mtu: u32,
    /// 0 is the kernel's choice.
    pub advmss: u32,
    /// RT_SCOPE_*.
    pub scope: u8,
    /// The gateway need not be in a connected network.
    pub onlink: bool,
    /// The routing table.
    pub table: u32,
    /// What becomes of a packet.
    pub kind: RouteType,
}

/// A permanent neighbour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// At which interface, by name.
    pub interface: String,
    /// Its address.
    pub address: IpAddr,
    /// Its MAC address.
    pub mac: [u8; 6],
}

/// The whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// In the order given.
    pub interfaces: Vec<Interface>,
    /// Those on-link first, so that gateways can be reached when their routes come.
    pub routes: Vec<Route>,
    /// In the order given.
    pub neighbours: Vec<Neighbour>,
    /// Policy rules.
    pub rules: Vec<RuleMessage>,
    /// Kernel parameters as files below /proc/sys, with their values, in the order given.
    pub sysctls: Vec<(PathBuf, String)>,
}

fn invalid(field: &'static str, value: &str, expected: &'static str) -> NetError {
    NetError::Invalid {
        field,
        value: value.to_owned(),
        expected,
    }
}

/// A MAC address, six bytes in hexadecimal with colons.
///
/// # Errors
/// For anything else.
pub fn parse_mac(text: &str) -> Result<[u8; 6], NetError> {
    let bad = || invalid("mac", text, "a MAC address is aa:bb:cc:dd:ee:ff");
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts
            .next()
            .filter(|part| part.len() == 2 && !part.starts_with('+'))
            .ok_or_else(bad)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
    }
    if parts.next().is_some() {
        Err(bad())
    } else {
        Ok(mac)
    }
}

fn parse_address(field: &'static str, text: &str) -> Result<IpAddr, NetError> {
    text.parse()
        .map_err(|_| invalid(field, text, "an IPv4 or IPv6 address"))
}

fn parse_optional(field: &'static str, text: &str) -> Result<Option<IpAddr>, NetError> {
    if text.is_empty() {
        Ok(None)
    } else {
        parse_address(field, text).map(Some)
    }
}

/// An address with prefix.
///
/// # Errors
/// Without a prefix, or with one longer than the address.
pub fn parse_prefix(field: &'static str, text: &str) -> Result<Prefix, NetError> {
    let bad = || {
        invalid(
            field,
            text,
            "an address with prefix, 10.0.0.5/16 or fd00::5/64",
        )
    };
    let (address, length) = text.split_once('/').ok_or_else(bad)?;
    let address: IpAddr = address.parse().map_err(|_| bad())?;
    let length: u8 = length.parse().map_err(|_| bad())?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    if length > longest {
        Err(bad())
    } else {
        Ok(Prefix { address, length })
    }
}

fn parse_name(text: &str) -> Result<String, NetError> {
    let good = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':');
    if (1..=MAX_NAME).contains(&text.len())
        && text.chars().all(good)
        && !matches!(text, "." | ".." | "lo")
    {
        Ok(text.to_owned())
    } else {
        Err(invalid(
            "interface name",
            text,
            "1 to 15 printable characters without '/' and ':'",
        ))
    }
}

impl TryFrom<&agent::Network> for Network {
    type Error = NetError;

    fn try_from(network: &agent::Network) -> Result<Self, NetError> {
        let interfaces = network
            .interfaces
            .iter()
            .map(|interface| {
                Ok(Interface {
                    mac: parse_mac(&interface.mac)?,
                    hardware_address: match interface.hardware_address.as_str() {
                        "" => None,
                        address => Some(parse_mac(address)?),
                    },
                    name: parse_name(&interface.name)?,
                    mtu: interface.mtu,
                    addresses: parse_prefixes(&interface.addresses)?,
                    without_route: parse_prefixes(&interface.addresses_without_route)?,
                    no_arp: interface.no_arp,
                })
            })
            .collect::<Result<Vec<_>, NetError>>()?;
        let known = |name: &str| {
            if interfaces.iter().any(|interface| interface.name == name) {
                Ok(name.to_owned())
            } else {
                Err(NetError::UnknownInterface(name.to_owned()))
            }
        };
        let mut routes = network
            .routes
            .iter()
            .map(|route| {
                let interface = match route.interface.as_str() {
                    "" => None,
                    name => Some(known(name)?),
                };
                parse_route(route, interface)
            })
            .collect::<Result<Vec<_>, NetError>>()?;
        routes.sort_by_key(|route| route.gateway.is_some());
        let neighbours = network
            .neighbours
            .iter()
            .map(|neighbour| {
                Ok(Neighbour {
                    interface: known(&neighbour.interface)?,
                    address: parse_address("neighbour", &neighbour.address)?,
                    mac: parse_mac(&neighbour.mac)?,
                })
            })
            .collect::<Result<Vec<_>, NetError>>()?;
        let rules = network
            .rules
            .iter()
            .map(|rule| parse_rule(rule))
            .collect::<Result<_, _>>()?;
        let sysctls = network
            .sysctls
            .iter()
            .map(|parameter| Ok((sysctl::path(&parameter.name)?, parameter.value.clone())))
            .collect::<Result<_, NetError>>()?;
        Ok(Self {
            interfaces,
            routes,
            neighbours,
            rules,
            sysctls,
        })
    }
}

fn parse_prefixes(texts: &[String]) -> Result<Vec<Prefix>, NetError> {
    texts
        .iter()
        .map(|text| parse_prefix("address", text))
        .collect()
}

/// A rule as another kernel says it, in the form in which this one takes it: what says whether its
/// interfaces are there is left out, and it is marked as ours.
fn parse_rule(bytes: &[u8]) -> Result<RuleMessage, NetError> {
    let bad = || {
        invalid(
            "rule",
            &format!("{bytes:02x?}"),
            "a policy rule of rtnetlink(7)",
        )
    };
    // The parser takes the header for granted.
    if bytes.len() < RULE_HEADER {
        return Err(bad());
    }
    let mut rule = RuleMessage::parse(bytes).map_err(|_| bad())?;
    rule.header.flags &= RuleFlags::Invert;
    rule.attributes
        .retain(|attribute| !matches!(attribute, RuleAttribute::Protocol(_)));
    rule.attributes
        .push(RuleAttribute::Protocol(RouteProtocol::Static));
    Ok(rule)
}

fn parse_kind(route: &agent::Route, interface: Option<&String>) -> Result<RouteType, NetError> {
    let bad = |expected| invalid("route", &route.destination, expected);
    let kind = match u8::try_from(route.kind).map(RouteType::from) {
        Ok(RouteType::Unspec | RouteType::Unicast) => RouteType::Unicast,
        Ok(
            kind @ (RouteType::BlackHole
            | RouteType::Unreachable
            | RouteType::Prohibit
            | RouteType::Throw),
        ) => kind,
        _ => {
            return Err(bad(
                "a unicast, blackhole, unreachable, prohibit or throw route",
            ));
        }
    };
    if kind == RouteType::Unicast && interface.is_none() {
        return Err(bad("a unicast route has an interface"));
    }
    Ok(kind)
}

fn parse_route(route: &agent::Route, interface: Option<String>) -> Result<Route, NetError> {
    let kind = parse_kind(route, interface.as_ref())?;
    let gateway = parse_optional("gateway", &route.gateway)?;
    let source = parse_optional("source", &route.source)?;
    let destination = if route.destination.is_empty() {
        let v6 = gateway.or(source).is_some_and(|address| address.is_ipv6());
        let address = if v6 {
            Ipv6Addr::UNSPECIFIED.into()
        } else {
            Ipv4Addr::UNSPECIFIED.into()
        };
        Prefix { address, length: 0 }
    } else {
        parse_prefix("destination", &route.destination)?
    };
    let family = destination.address.is_ipv4();
    if [gateway, source]
        .iter()
        .flatten()
        .any(|address| address.is_ipv4() != family)
    {
        return Err(invalid(
            "route",
            &route.destination,
            "destination, gateway and source are of one family",
        ));
    }
    let scope = u8::try_from(route.scope).map_err(|_| {
        invalid(
            "scope",
            &route.scope.to_string(),
            "0 (universe), 253 (link) or 254 (host)",
        )
    })?;
    Ok(Route {
        interface,
        destination,
        gateway,
        source,
        metric: route.metric,
        mtu: route.mtu,
        advmss: route.advmss,
        scope,
        onlink: route.onlink,
        table: match route.table {
            0 => RouteHeader::RT_TABLE_MAIN.into(),
            table => table,
        },
        kind,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rtnetlink::packet_core::Emitable as _;

    use super::*;

    fn network() -> agent::Network {
        agent::Network {
            interfaces: vec![agent::Interface {
                mac: "02:00:00:00:00:01".into(),
                name: "eth0".into(),
                mtu: 1450,
                addresses: vec!["10.88.0.5/16".into(), "fd00::5/64".into()],
                ..agent::Interface::default()
            }],
            routes: vec![
                agent::Route {
                    interface: "eth0".into(),
                    gateway: "fd00::1".into(),
                    ..agent::Route::default()
                },
                agent::Route {
                    interface: "eth0".into(),
                    destination: "169.254.1.1/32".into(),
                    scope: 253,
                    ..agent::Route::default()
                },
            ],
            ..agent::Network::default()
        }
    }

    #[test]
    fn a_gateway_gives_the_default_route_its_family_and_comes_last() {
        let network = Network::try_from(&network()).unwrap();
        assert_eq!(network.routes[0].gateway, None);
        assert_eq!(
            network.routes[1].destination,
            Prefix {
                address: Ipv6Addr::UNSPECIFIED.into(),
                length: 0
            }
        );
    }

    #[test]
    fn invalid_networks_are_refused() {
        let broken: [fn(&mut agent::Network); 14] = [
            |n| n.interfaces[0].mac = "02:00:00:00:00".into(),
            |n| n.interfaces[0].mac = "02:00:00:00:00:+1".into(),
            |n| n.interfaces[0].name = "../eth0".into(),
            |n| n.interfaces[0].name = "lo".into(),
            |n| n.interfaces[0].addresses = vec!["10.0.0.1/33".into()],
            |n| n.routes[0].interface = "eth1".into(),
            |n| n.routes[0].destination = "10.0.0.0/8".into(),
            |n| n.routes[1].scope = 256,
            |n| n.routes[1].interface = String::new(),
            |n| n.routes[1].kind = 2,
            |n| n.routes[1].kind = 262,
            |n| n.interfaces[0].addresses_without_route = vec!["10.0.0.1".into()],
            |n| n.rules = vec![vec![2; 11].into()],
            |n| {
                n.sysctls = vec![agent::Sysctl {
                    name: "net/../kernel/core_pattern".into(),
                    value: "x".into(),
                }];
            },
        ];
        for (index, change) in broken.into_iter().enumerate() {
            let mut network = network();
            change(&mut network);
            assert!(Network::try_from(&network).is_err(), "case {index}");
        }
    }

    #[test]
    fn a_rule_of_another_kernel_is_made_ours() {
        let mut theirs = RuleMessage::default();
        theirs.header.flags = RuleFlags::Invert | RuleFlags::OifDetached;
        theirs.attributes = vec![
            RuleAttribute::Table(100),
            RuleAttribute::Protocol(RouteProtocol::Boot),
        ];
        let mut bytes = vec![0; theirs.buffer_len()];
        theirs.emit(&mut bytes);
        let ours = parse_rule(&bytes).unwrap();
        assert_eq!(ours.header.flags, RuleFlags::Invert);
        assert_eq!(
            ours.attributes,
            [
                RuleAttribute::Table(100),
                RuleAttribute::Protocol(RouteProtocol::Static)
            ]
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse_rule(&bytes);
        }

        #[test]
        fn arbitrary_text_never_panics(text in ".{0,40}") {
            let _ = parse_mac(&text);
            let _ = parse_prefix("address", &text);
            let _ = parse_name(&text);
        }
    }
}
