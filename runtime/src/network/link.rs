//! The pod's side of its network on the host: which interfaces of its namespace the guest gets,
//! and the taps the VMM reads and writes, each tied to one of them by tc (every frame that comes in
//! at one goes out at the other). Everything here runs inside the pod's namespace. What the
//! interfaces have, for the guest, is in `describe`.

use std::{
    collections::HashSet,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use bulkhead_proto::agent;
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use tun_rs::{DeviceBuilder, Layer};

use super::{
    NetworkError,
    cni::POD_INTERFACE,
    describe::describe,
    netlink::{Netlink, name_of},
    netns,
    pod_link::{MAX_INTERFACES, PodLink},
    sysctl::{self, Parameters},
};

/// The first tap's name in the pod's namespace.
pub const TAP: &str = "tap0";
/// What a link without the attribute is taken to have (it always has it).
const DEFAULT_MTU: u32 = 1500;

/// A tap that was made for a further interface.
#[derive(Debug)]
pub struct LaterTap {
    /// Its queue.
    pub tap: OwnedFd,
    /// The hardware address of the device the guest will have.
    pub mac: String,
}

/// Makes the first tap, and sets the loopback interface up (some plugins look at it).
///
/// # Errors
/// If the kernel refuses.
pub async fn make_tap(path: &Path) -> Result<OwnedFd, NetworkError> {
    let inside = path.to_owned();
    netns::within(path, move || async move {
        let tap = new_tap(TAP, &inside)?;
        let net = Netlink::open(inside)?;
        let lo = net.link("lo").await?;
        net.up(lo.header.index, None).await?;
        Ok(tap)
    })
    .await
}

/// In the namespace the thread is in, which is that of `path`.
fn new_tap(name: &str, path: &Path) -> Result<OwnedFd, NetworkError> {
    let tap = || -> std::io::Result<OwnedFd> {
        // With the virtio-net header, so that segmentation and checksums stay offloaded.
        let device = DeviceBuilder::new()
            .name(name)
            .layer(Layer::L2)
            .offload(true)
            .enable(false)
            .build_sync()?;
        device.as_fd().try_clone_to_owned()
    };
    let tap = tap().map_err(|source| NetworkError::Tap {
        path: path.to_owned(),
        source,
    })?;
    // The tap speaks for the guest alone: the host's IPv6 must not answer on it. A host
    // without IPv6 has no such file, and needs none.
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
    Ok(tap)
}

/// Ties the first tap to the CNI interface, and a new one to every further interface that the
/// plugins left; says what the guest must have. `mac` gives the hardware address of the guest's n-th
/// device. `fresh` is what a new namespace has of kernel parameters: what differs was set by a
/// plugin.
///
/// # Errors
/// If the CNI interface is not there or not Ethernet, there are too many, or the kernel refuses.
pub async fn tie(
    path: &Path,
    mac: impl Fn(usize) -> String + Send + 'static,
    fresh: Parameters,
) -> Result<(agent::Network, Vec<LaterTap>), NetworkError> {
    let inside = path.to_owned();
    netns::within(path, move || async move {
        let net = Netlink::open(inside.clone())?;
        let all = net.links().await?;
        let tap = all.iter().find(|link| name_of(link) == Some(TAP));
        let tap = tap.ok_or_else(|| net.missing(TAP))?.header.index;
        let links = pod_links(&all, &inside)?;
        let mut network = describe(&net, &links).await?;
        network.sysctls = sysctl::carried(&fresh, &links);
        let mut taken: HashSet<String> = all
            .iter()
            .filter_map(|link| name_of(link).map(ToOwned::to_owned))
            .collect();
        let mut later = Vec::new();
        for (number, link) in links.iter().enumerate() {
            let mac = mac(number);
            if let Some(interface) = network.interfaces.get_mut(number) {
                interface.mac.clone_from(&mac);
            }
            let tap = match number {
                0 => tap,
                _ => {
                    let (made, index) = further_tap(&net, &mut taken, &inside).await?;
                    later.push(LaterTap { tap: made, mac });
                    index
                }
            };
            net.up(tap, Some(link.mtu)).await?;
            net.redirect(link.index, tap).await?;
            net.redirect(tap, link.index).await?;
        }
        Ok((network, later))
    })
    .await
}

/// A tap by a name that no interface has, and its number.
async fn further_tap(
    net: &Netlink,
    taken: &mut HashSet<String>,
    path: &Path,
) -> Result<(OwnedFd, u32), NetworkError> {
    let free = |name: &String| !taken.contains(name);
    // One more name than there can be interfaces is always free.
    let name = (1..).map(|number| format!("tap{number}")).find(free);
    let name = name.unwrap_or_default();
    let tap = new_tap(&name, path)?;
    let links = net.links().await?;
    let made = links.iter().find(|link| name_of(link) == Some(&name));
    let index = made.ok_or_else(|| net.missing("tap"))?.header.index;
    taken.insert(name);
    Ok((tap, index))
}

/// Returns what the CNI interfaces have, and does not change them: a pod on the host uses them
/// itself.
///
/// # Errors
/// If the first is not there, or the kernel refuses.
pub async fn look(path: &Path) -> Result<agent::Network, NetworkError> {
    let inside = path.to_owned();
    netns::within(path, move || async move {
        let net = Netlink::open(inside.clone())?;
        let links = select(&net.links().await?, &inside)?;
        let mut network = describe(&net, &links).await?;
        for interface in &mut network.interfaces {
            interface.mac.clone_from(&interface.hardware_address);
        }
        Ok(network)
    })
    .await
}

/// The interfaces a guest gets: see [`select`]; the first must be one it can have.
fn pod_links(all: &[LinkMessage], path: &Path) -> Result<Vec<PodLink>, NetworkError> {
    let links = select(all, path)?;
    if links.first().is_some_and(|link| link.mac.is_none()) {
        return Err(NetworkError::NotEthernet {
            name: POD_INTERFACE.to_owned(),
            path: path.to_owned(),
        });
    }
    Ok(links)
}

/// The CNI interface, and after it all others that are up and Ethernet. Not loopback and our own
/// tap; not what the kernel or a module left (tunl0, sit0, gre0 and their like are down, or no
/// Ethernet); not the ports of another interface of the namespace (a bond's), which itself is there.
fn select(all: &[LinkMessage], path: &Path) -> Result<Vec<PodLink>, NetworkError> {
    let first = all.iter().find(|link| name_of(link) == Some(POD_INTERFACE));
    let first = first.ok_or_else(|| NetworkError::NoInterface {
        name: POD_INTERFACE,
        path: path.to_owned(),
    })?;
    let mut links = vec![pod_link(first)];
    for link in all {
        let name = name_of(link).unwrap_or_default();
        let flags = link.header.flags;
        if [POD_INTERFACE, TAP].contains(&name)
            || flags.contains(LinkFlags::Loopback)
            || !flags.contains(LinkFlags::Up)
            || is_port(link, all)
        {
            continue;
        }
        let found = pod_link(link);
        let why = if found.mac.is_none() || kind_of(link) == Some(&InfoKind::Vrf) {
            "it is not Ethernet"
        } else if is_part(link, all) {
            "it is a part of another interface of the namespace"
        } else {
            links.push(found);
            continue;
        };
        tracing::warn!(
            interface = name, namespace = %path.display(),
            "the pod's virtual machine cannot have this interface: {why}"
        );
    }
    if links.len() > MAX_INTERFACES {
        return Err(NetworkError::TooManyInterfaces {
            number: links.len(),
            path: path.to_owned(),
        });
    }
    Ok(links)
}

fn kind_of(link: &LinkMessage) -> Option<&InfoKind> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
                LinkInfo::Kind(kind) => Some(kind),
                _ => None,
            }),
            _ => None,
        })
}

/// Whether another interface of the namespace takes its frames. A VRF only chooses a routing table.
fn is_port(link: &LinkMessage, all: &[LinkMessage]) -> bool {
    let controller = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Controller(index) => Some(*index),
            _ => None,
        });
    controller.is_some_and(|index| {
        all.iter()
            .any(|other| other.header.index == index && kind_of(other) != Some(&InfoKind::Vrf))
    })
}

/// Whether it lives off the frames of another interface of the namespace (a VLAN of eth0), which are the
/// guest's. Mostly the other one is on the host.
fn is_part(link: &LinkMessage, all: &[LinkMessage]) -> bool {
    let mut lower = None;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Link(index) => lower = Some(*index),
            // Its number is of another namespace.
            LinkAttribute::LinkNetNsId(_) => return false,
            _ => {}
        }
    }
    let stacked = matches!(
        kind_of(link),
        Some(InfoKind::Vlan | InfoKind::MacVlan | InfoKind::IpVlan)
    );
    stacked && all.iter().any(|other| Some(other.header.index) == lower)
}

fn pod_link(link: &LinkMessage) -> PodLink {
    let mut found = PodLink {
        index: link.header.index,
        name: name_of(link).unwrap_or_default().to_owned(),
        mtu: DEFAULT_MTU,
        mac: None,
        no_arp: link.header.flags.contains(LinkFlags::Noarp),
    };
    let ethernet = link.header.link_layer_type == LinkLayerType::Ether;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
            LinkAttribute::Address(bytes) if ethernet => {
                found.mac = <[u8; 6]>::try_from(bytes.as_slice()).ok();
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, flags: LinkFlags, layer: LinkLayerType) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = flags;
        link.header.link_layer_type = layer;
        link.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Mtu(1400),
            LinkAttribute::Address(match layer {
                LinkLayerType::Ether => vec![2, 0, 0, 0, 0, u8::try_from(index).unwrap()],
                _ => vec![10, 0, 0, 1],
            }),
        ];
        link
    }

    fn names(all: &[LinkMessage]) -> Vec<String> {
        let links = pod_links(all, Path::new("/n")).unwrap();
        links.into_iter().map(|link| link.name).collect()
    }

    #[test]
    fn what_is_up_and_ethernet_gets_in_and_the_pods_own_comes_first() {
        let (up, down) = (LinkFlags::Up, LinkFlags::empty());
        let ether = LinkLayerType::Ether;
        let mut bond = link(9, "bond0", up, ether);
        bond.attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(
                InfoKind::Bond,
            )]));
        let mut port = link(10, "net2", up, ether);
        port.attributes.push(LinkAttribute::Controller(9));
        // Of another namespace: that of the bridge on the host.
        let mut elsewhere = link(11, "net3", up | LinkFlags::Noarp, ether);
        elsewhere.attributes.push(LinkAttribute::Controller(77));
        let all = [
            link(1, "lo", up | LinkFlags::Loopback, LinkLayerType::Loopback),
            link(2, "tunl0", down, LinkLayerType::Tunnel),
            link(3, "gretap0", down, ether),
            link(4, "sit0", up, LinkLayerType::Sit),
            link(5, TAP, up, ether),
            link(6, "net1", up, ether),
            link(7, "dummy0", down, ether),
            link(8, POD_INTERFACE, up, ether),
            bond,
            port,
            elsewhere,
        ];
        assert_eq!(names(&all), ["eth0", "net1", "bond0", "net3"]);
        let links = pod_links(&all, Path::new("/n")).unwrap();
        assert_eq!(links.iter().filter(|link| link.no_arp).count(), 1);
        assert_eq!(links[1].mac, Some([2, 0, 0, 0, 0, 6]));
    }

    #[test]
    fn a_vrf_does_not_take_its_interfaces_away() {
        let (up, ether) = (LinkFlags::Up, LinkLayerType::Ether);
        let mut vrf = link(3, "blue", up, ether);
        vrf.attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vrf)]));
        let mut inside = link(4, "net1", up, ether);
        inside.attributes.push(LinkAttribute::Controller(3));
        let all = [link(2, POD_INTERFACE, up, ether), vrf, inside];
        assert_eq!(names(&all), ["eth0", "net1"]);
    }

    #[test]
    fn a_vlan_of_the_pods_own_interface_is_left_out_and_one_of_the_hosts_is_not() {
        let (up, ether) = (LinkFlags::Up, LinkLayerType::Ether);
        let vlan = |index, name: &str| {
            let mut vlan = link(index, name, up, ether);
            vlan.attributes.extend([
                LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vlan)]),
                LinkAttribute::Link(2),
            ]);
            vlan
        };
        let mut of_host = vlan(4, "net1");
        of_host.attributes.push(LinkAttribute::LinkNetNsId(0));
        let all = [
            link(2, POD_INTERFACE, up, ether),
            vlan(3, "eth0.5"),
            of_host,
        ];
        assert_eq!(names(&all), ["eth0", "net1"]);
    }

    #[test]
    fn a_pod_without_its_interface_is_told() {
        let up = LinkFlags::Up;
        let missing = pod_links(
            &[link(2, "net1", up, LinkLayerType::Ether)],
            Path::new("/n"),
        );
        assert!(matches!(missing, Err(NetworkError::NoInterface { .. })));
        let tunnel = link(2, POD_INTERFACE, up, LinkLayerType::Tunnel);
        let refused = pod_links(&[tunnel], Path::new("/n")).unwrap_err();
        assert!(refused.to_string().contains("Ethernet"), "{refused}");
        let mut many = vec![link(1, POD_INTERFACE, up, LinkLayerType::Ether)];
        for number in 2..=33 {
            many.push(link(
                number,
                &format!("net{number}"),
                up,
                LinkLayerType::Ether,
            ));
        }
        let refused = pod_links(&many, Path::new("/n")).unwrap_err().to_string();
        assert!(
            refused.contains("33") && refused.contains("32"),
            "{refused}"
        );
    }
}
