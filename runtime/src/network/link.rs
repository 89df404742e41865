//! The pod's side of its network on the host: the tap the VMM reads and writes, tied to the CNI
//! interface by tc (every frame that comes in at one goes out at the other), and what that
//! interface has, written down for the guest. Everything here runs inside the pod's namespace.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use bulkhead_proto::agent;
use futures::TryStreamExt as _;
use rtnetlink::{
    Handle, LinkUnspec,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressScope},
        link::{LinkAttribute, LinkMessage},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState},
        route::{
            RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
            RouteProtocol, RouteType,
        },
    },
};
use tun_rs::{DeviceBuilder, Layer};

use super::{NetworkError, cni::POD_INTERFACE, netns};

/// The tap's name in the pod's namespace.
pub const TAP: &str = "tap0";
/// `ETH_P_ALL`, big-endian as tc has it.
const ALL_PROTOCOLS: u16 = 0x0003_u16.to_be();
/// The handle of an ingress qdisc, `ffff:`.
const INGRESS: u32 = 0xffff_0000;
/// The kernel's main routing table.
const MAIN_TABLE: u32 = RouteHeader::RT_TABLE_MAIN as u32;

/// Makes the tap, and sets the loopback interface up (some plugins look at it).
///
/// # Errors
/// If the kernel refuses.
pub async fn make_tap(path: &Path) -> Result<OwnedFd, NetworkError> {
    let inside = path.to_owned();
    netns::within(path, move || async move {
        let tap = || -> std::io::Result<OwnedFd> {
            // With the virtio-net header, so that segmentation and checksums stay offloaded.
            let device = DeviceBuilder::new()
                .name(TAP)
                .layer(Layer::L2)
                .offload(true)
                .enable(false)
                .build_sync()?;
            device.as_fd().try_clone_to_owned()
        };
        let tap = tap().map_err(|source| NetworkError::Tap {
            path: inside.clone(),
            source,
        })?;
        // The tap speaks for the guest alone: the host's IPv6 must not answer on it. A host
        // without IPv6 has no such file, and needs none.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{TAP}/disable_ipv6"), "1");
        let net = Netlink::open(inside)?;
        let lo = net.link("lo").await?.ok_or_else(|| net.missing("lo"))?;
        net.up(lo.header.index, None).await?;
        Ok(tap)
    })
    .await
}

/// Ties the tap to the CNI interface and returns what the guest's interface must have. `mac` is the
/// hardware address of the guest's device.
///
/// # Errors
/// If the interface is not there, or the kernel refuses.
pub async fn tie(path: &Path, mac: String) -> Result<agent::Network, NetworkError> {
    let inside = path.to_owned();
    netns::within(path, move || async move {
        let net = Netlink::open(inside)?;
        let outer = net
            .link(POD_INTERFACE)
            .await?
            .ok_or_else(|| net.missing(POD_INTERFACE))?;
        let tap = net.link(TAP).await?.ok_or_else(|| net.missing(TAP))?;
        let mtu = mtu_of(&outer);
        let network = net.describe(&outer, mac, mtu).await?;
        net.up(tap.header.index, Some(mtu)).await?;
        net.redirect(outer.header.index, tap.header.index).await?;
        net.redirect(tap.header.index, outer.header.index).await?;
        Ok(network)
    })
    .await
}

/// Returns what the CNI interface has, and does not change it: a pod on the host uses it itself.
///
/// # Errors
/// If the interface is not there, or the kernel refuses.
pub async fn look(path: &Path) -> Result<agent::Network, NetworkError> {
    let inside = path.to_owned();
    netns::within(path, move || async move {
        let net = Netlink::open(inside)?;
        let link = net.link(POD_INTERFACE).await?;
        let link = link.ok_or_else(|| net.missing(POD_INTERFACE))?;
        let mut network = net.describe(&link, String::new(), mtu_of(&link)).await?;
        for interface in &mut network.interfaces {
            interface.mac.clone_from(&interface.hardware_address);
        }
        Ok(network)
    })
    .await
}

fn mtu_of(link: &LinkMessage) -> u32 {
    let mtu = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
    mtu.unwrap_or(1500)
}

/// `aa:bb:cc:dd:ee:ff`.
fn mac_text(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<Vec<_>>()
        .join(":")
}

/// A netlink socket of the namespace the thread is in.
struct Netlink {
    handle: Handle,
    path: PathBuf,
}

impl Netlink {
    fn open(path: PathBuf) -> Result<Self, NetworkError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|source| NetworkError::Namespace {
                what: "open netlink in",
                path: path.clone(),
                source,
            })?;
        tokio::spawn(connection);
        Ok(Self { handle, path })
    }

    fn failed(&self, what: &'static str) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
        let path = self.path.clone();
        move |source| NetworkError::Netlink { what, path, source }
    }

    fn missing(&self, name: &'static str) -> NetworkError {
        NetworkError::NoInterface {
            name,
            path: self.path.clone(),
        }
    }

    async fn link(&self, name: &str) -> Result<Option<LinkMessage>, NetworkError> {
        let links: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(self.failed("list the interfaces"))?;
        let named = |link: &LinkMessage| {
            link.attributes
                .iter()
                .any(|a| matches!(a, LinkAttribute::IfName(n) if n == name))
        };
        Ok(links.into_iter().find(named))
    }

    async fn up(&self, index: u32, mtu: Option<u32>) -> Result<(), NetworkError> {
        let mut message = LinkUnspec::new_with_index(index).up();
        if let Some(mtu) = mtu {
            message = message.mtu(mtu);
        }
        self.handle
            .link()
            .set(message.build())
            .execute()
            .await
            .map_err(self.failed("set an interface up"))
    }

    async fn redirect(&self, from: u32, to: u32) -> Result<(), NetworkError> {
        let from = i32::try_from(from).unwrap_or(i32::MAX);
        self.handle
            .qdisc()
            .add(from)
            .ingress()
            .execute()
            .await
            .map_err(self.failed("add an ingress qdisc"))?;
        let filter = self
            .handle
            .traffic_filter(from)
            .add()
            .parent(INGRESS)
            .protocol(ALL_PROTOCOLS)
            .redirect(to)
            .map_err(self.failed("build a redirect"))?;
        filter
            .execute()
            .await
            .map_err(self.failed("redirect an interface's frames"))
    }

    /// What the CNI plugins gave the interface.
    async fn describe(
        &self,
        link: &LinkMessage,
        mac: String,
        mtu: u32,
    ) -> Result<agent::Network, NetworkError> {
        let index = link.header.index;
        let hardware = link
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::Address(bytes) if bytes.len() == 6 => Some(mac_text(bytes)),
                _ => None,
            });
        let interface = agent::Interface {
            mac,
            name: POD_INTERFACE.to_owned(),
            mtu,
            addresses: self.addresses(index).await?,
            hardware_address: hardware.unwrap_or_default(),
        };
        let mut routes = self.routes(index, AddressFamily::Inet).await?;
        routes.extend(self.routes(index, AddressFamily::Inet6).await?);
        // Routes on the link come before those whose gateway they reach.
        routes.sort_by_key(|route| !route.gateway.is_empty());
        let neighbours = self.neighbours(index).await?;
        Ok(agent::Network {
            interfaces: vec![interface],
            routes,
            neighbours,
        })
    }

    async fn addresses(&self, index: u32) -> Result<Vec<String>, NetworkError> {
        let all: Vec<_> = self
            .handle
            .address()
            .get()
            .set_link_index_filter(index)
            .execute()
            .try_collect()
            .await
            .map_err(self.failed("list the addresses"))?;
        let mut found = Vec::new();
        // The guest makes its own link-local address from the hardware address.
        for message in all.iter().filter(|m| m.header.scope != AddressScope::Link) {
            // IFA_LOCAL is the interface's own where IFA_ADDRESS is the peer's (point to point).
            let local = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    AddressAttribute::Local(address) => Some(*address),
                    _ => None,
                });
            let address = local.or_else(|| {
                message
                    .attributes
                    .iter()
                    .find_map(|attribute| match attribute {
                        AddressAttribute::Address(address) => Some(*address),
                        _ => None,
                    })
            });
            if let Some(address) = address {
                found.push(format!("{address}/{}", message.header.prefix_len));
            }
        }
        Ok(found)
    }

    async fn routes(
        &self,
        index: u32,
        family: AddressFamily,
    ) -> Result<Vec<agent::Route>, NetworkError> {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        let all: Vec<_> = self
            .handle
            .route()
            .get(question)
            .execute()
            .try_collect()
            .await
            .map_err(self.failed("list the routes"))?;
        Ok(all
            .iter()
            .filter_map(|message| route(message, index))
            .collect())
    }

    async fn neighbours(&self, index: u32) -> Result<Vec<agent::Neighbour>, NetworkError> {
        let all: Vec<_> = self
            .handle
            .neighbours()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(self.failed("list the neighbours"))?;
        let mut found = Vec::new();
        // Only those a plugin set for good; the rest the guest learns.
        for message in all
            .iter()
            .filter(|m| m.header.ifindex == index && m.header.state == NeighbourState::Permanent)
        {
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
            if let (Some(address), Some(mac)) = (address, mac) {
                found.push(agent::Neighbour {
                    interface: POD_INTERFACE.to_owned(),
                    address,
                    mac,
                });
            }
        }
        Ok(found)
    }
}

/// A route of the interface that a plugin made; `None` for the kernel's own (they come with the
/// addresses), other tables and other interfaces.
fn route(message: &RouteMessage, index: u32) -> Option<agent::Route> {
    let header = &message.header;
    if header.protocol == RouteProtocol::Kernel || header.kind != RouteType::Unicast {
        return None;
    }
    let mut found = agent::Route {
        interface: POD_INTERFACE.to_owned(),
        scope: u8::from(header.scope).into(),
        onlink: header.flags.contains(RouteFlags::Onlink),
        ..agent::Route::default()
    };
    let mut table = u32::from(header.table);
    let mut ours = false;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => ours = *oif == index,
            RouteAttribute::Destination(address) => {
                let address = ip_text(address)?;
                found.destination = format!("{address}/{}", header.destination_prefix_length);
            }
            RouteAttribute::Gateway(address) => found.gateway = ip_text(address)?,
            RouteAttribute::PrefSource(address) => found.source = ip_text(address)?,
            RouteAttribute::Priority(metric) => found.metric = *metric,
            RouteAttribute::Table(number) => table = *number,
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
    if found.destination.is_empty() && found.gateway.is_empty() {
        // A default route over the link itself needs its family said.
        let any = if header.address_family == AddressFamily::Inet {
            "0.0.0.0/0"
        } else {
            "::/0"
        };
        found.destination = any.to_owned();
    }
    (ours && table == MAIN_TABLE).then_some(found)
}

fn ip_text(address: &RouteAddress) -> Option<String> {
    match address {
        RouteAddress::Inet(ip) => Some(ip.to_string()),
        RouteAddress::Inet6(ip) => Some(ip.to_string()),
        _ => None,
    }
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

    #[test]
    fn a_plugins_route_keeps_its_metrics() {
        let found = route(
            &message(
                RouteProtocol::Boot,
                vec![
                    RouteAttribute::Oif(2),
                    RouteAttribute::Destination(inet("10.9.0.0")),
                    RouteAttribute::Gateway(inet("10.1.0.1")),
                    RouteAttribute::Priority(7),
                    RouteAttribute::Metrics(vec![
                        RouteMetric::Mtu(1400),
                        RouteMetric::Advmss(1360),
                    ]),
                ],
            ),
            2,
        )
        .unwrap();
        assert_eq!(
            (found.destination.as_str(), found.gateway.as_str()),
            ("10.9.0.0/16", "10.1.0.1")
        );
        assert_eq!((found.metric, found.mtu, found.advmss), (7, 1400, 1360));
    }

    #[test]
    fn the_kernels_and_others_routes_are_left_out() {
        let on_link = vec![
            RouteAttribute::Oif(2),
            RouteAttribute::Destination(inet("10.1.0.0")),
        ];
        assert!(route(&message(RouteProtocol::Kernel, on_link.clone()), 2).is_none());
        assert!(route(&message(RouteProtocol::Static, on_link.clone()), 3).is_none());
        assert!(route(&message(RouteProtocol::Static, on_link), 2).is_some());
        let other_table = vec![RouteAttribute::Oif(2), RouteAttribute::Table(100)];
        assert!(route(&message(RouteProtocol::Static, other_table), 2).is_none());
    }

    #[test]
    fn a_default_route_over_the_link_names_its_family() {
        let found = route(
            &message(RouteProtocol::Static, vec![RouteAttribute::Oif(2)]),
            2,
        )
        .unwrap();
        assert_eq!(found.destination, "0.0.0.0/0");
    }
}
