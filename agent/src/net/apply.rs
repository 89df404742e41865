//! Configures the guest's devices to match the model, by netlink. Repeatable: what the model does
//! not have is removed, what it has stays.

use std::collections::HashMap;
use std::net::IpAddr;

use futures::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};
use rtnetlink::{Handle, LinkUnspec};

use super::NetError;
use super::model::{Interface, Network, Prefix, Route};

fn failed(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetError {
    let what = what.into();
    move |error| NetError::Netlink { what, error }
}

/// A netlink handle; the task behind it ends when the handle is dropped.
fn connect() -> Result<Handle, NetError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(NetError::Socket)?;
    tokio::spawn(connection);
    Ok(handle)
}

struct Link {
    index: u32,
    name: String,
    mac: Option<[u8; 6]>,
    mtu: u32,
    up: bool,
}

fn link_of(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            _ => {}
        }
    }
    link
}

/// Sets interfaces, routes and neighbours to exactly what is given.
///
/// # Errors
/// For the first step that fails; calling again continues from there.
pub async fn apply(network: &Network) -> Result<(), NetError> {
    let handle = connect()?;
    let links: Vec<_> = handle
        .link()
        .get()
        .execute()
        .map_ok(|message| link_of(&message))
        .try_collect()
        .await
        .map_err(failed("listing network devices"))?;
    let mut indexes = HashMap::new();
    for interface in &network.interfaces {
        // An earlier call may have given it its other address.
        let by = |mac: Option<[u8; 6]>| links.iter().find(|link| mac.is_some() && link.mac == mac);
        let link = by(Some(interface.mac)).or_else(|| by(interface.hardware_address));
        let link = link.ok_or_else(|| {
            let mac = interface.mac.map(|byte| format!("{byte:02x}")).join(":");
            NetError::NoDevice { mac }
        })?;
        set_link(&handle, link, interface).await?;
        set_addresses(&handle, link.index, interface).await?;
        indexes.insert(interface.name.as_str(), link.index);
    }
    set_routes(&handle, &network.routes, &indexes).await?;
    for neighbour in &network.neighbours {
        let index = index_of(&indexes, &neighbour.interface)?;
        handle
            .neighbours()
            .add(index, neighbour.address)
            .link_layer_address(&neighbour.mac)
            .replace()
            .execute()
            .await
            .map_err(failed(format!("adding neighbour {}", neighbour.address)))?;
    }
    Ok(())
}

fn index_of(indexes: &HashMap<&str, u32>, name: &str) -> Result<u32, NetError> {
    indexes
        .get(name)
        .copied()
        .ok_or_else(|| NetError::UnknownInterface(name.to_owned()))
}

async fn set_link(handle: &Handle, link: &Link, interface: &Interface) -> Result<(), NetError> {
    let set = |message, what: String| async move {
        handle
            .link()
            .set(message)
            .execute()
            .await
            .map_err(failed(what))
    };
    let name = &interface.name;
    if link.name != *name {
        if link.up {
            let down = LinkUnspec::new_with_index(link.index).down().build();
            set(down, format!("setting {} down", link.name)).await?;
        }
        let rename = LinkUnspec::new_with_index(link.index)
            .name(name.clone())
            .build();
        set(rename, format!("renaming {} to {name}", link.name)).await?;
    }
    if let Some(address) = interface
        .hardware_address
        .filter(|new| link.mac != Some(*new))
    {
        let change = LinkUnspec::new_with_index(link.index)
            .address(address.to_vec())
            .build();
        set(change, format!("changing the hardware address of {name}")).await?;
    }
    if interface.mtu != 0 && interface.mtu != link.mtu {
        let mtu = LinkUnspec::new_with_index(link.index)
            .mtu(interface.mtu)
            .build();
        set(
            mtu,
            format!("setting the MTU of {name} to {}", interface.mtu),
        )
        .await?;
    }
    let up = LinkUnspec::new_with_index(link.index).up().build();
    set(up, format!("setting {name} up")).await
}

fn prefix_of(message: &AddressMessage) -> Option<Prefix> {
    let address = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Local(address) => Some((true, *address)),
        AddressAttribute::Address(address) => Some((false, *address)),
        _ => None,
    };
    // IFA_LOCAL is the address itself where both are there (point to point).
    let (_, address) = message
        .attributes
        .iter()
        .filter_map(address)
        .max_by_key(|(local, _)| *local)?;
    Some(Prefix {
        address,
        length: message.header.prefix_len,
    })
}

fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

async fn set_addresses(handle: &Handle, index: u32, interface: &Interface) -> Result<(), NetError> {
    let present: Vec<_> = handle
        .address()
        .get()
        .set_link_index_filter(index)
        .execute()
        .try_collect()
        .await
        .map_err(failed("listing addresses"))?;
    let mut there = Vec::new();
    for message in present {
        let Some(prefix) = prefix_of(&message) else {
            continue;
        };
        if interface.addresses.contains(&prefix) {
            there.push(prefix);
        } else if !is_link_local(&prefix.address) {
            handle
                .address()
                .del(message)
                .execute()
                .await
                .map_err(failed(format!("removing address {}", prefix.address)))?;
        }
    }
    for prefix in interface
        .addresses
        .iter()
        .filter(|prefix| !there.contains(prefix))
    {
        let mut request = handle
            .address()
            .add(index, prefix.address, prefix.length)
            .replace();
        if prefix.address.is_ipv6() {
            // The address is the pod's alone, and duplicate detection would leave it unusable
            // for a second.
            let flags = AddressAttribute::Flags(AddressFlags::Nodad);
            request.message_mut().attributes.push(flags);
        }
        request.execute().await.map_err(failed(format!(
            "adding address {}/{}",
            prefix.address, prefix.length
        )))?;
    }
    Ok(())
}

fn family(address: &IpAddr) -> AddressFamily {
    if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

/// The table of a route message: the attribute, which has room for large numbers, or the header.
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

fn route_message(route: &Route, index: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(&route.destination.address);
    header.destination_prefix_length = route.destination.length;
    header.table = RouteHeader::RT_TABLE_MAIN;
    header.protocol = RouteProtocol::Static;
    header.kind = RouteType::Unicast;
    header.scope = RouteScope::from(route.scope);
    if route.onlink {
        header.flags |= RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Oif(index));
    if route.destination.length > 0 {
        attributes.push(RouteAttribute::Destination(
            route.destination.address.into(),
        ));
    }
    if let Some(gateway) = route.gateway {
        attributes.push(RouteAttribute::Gateway(gateway.into()));
    }
    if let Some(source) = route.source {
        attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    if route.metric != 0 {
        attributes.push(RouteAttribute::Priority(route.metric));
    }
    let mut metrics = Vec::new();
    if route.mtu != 0 {
        metrics.push(RouteMetric::Mtu(route.mtu));
    }
    if route.advmss != 0 {
        metrics.push(RouteMetric::Advmss(route.advmss));
    }
    if !metrics.is_empty() {
        attributes.push(RouteAttribute::Metrics(metrics));
    }
    message
}

/// What identifies a route for the kernel: table, destination, metric.
fn key(message: &RouteMessage) -> (u32, AddressFamily, Option<RouteAttribute>, u8, u32) {
    let destination = message
        .attributes
        .iter()
        .find(|attribute| matches!(attribute, RouteAttribute::Destination(_)));
    let metric = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Priority(metric) => Some(*metric),
            _ => None,
        });
    // The kernel gives IPv6 routes without a metric 1024.
    let default = if message.header.address_family == AddressFamily::Inet6 {
        1024
    } else {
        0
    };
    (
        table_of(message),
        message.header.address_family,
        destination.cloned(),
        message.header.destination_prefix_length,
        metric.unwrap_or(default),
    )
}

async fn set_routes(
    handle: &Handle,
    routes: &[Route],
    indexes: &HashMap<&str, u32>,
) -> Result<(), NetError> {
    let mut wanted = Vec::new();
    for route in routes {
        wanted.push((
            route_message(route, index_of(indexes, &route.interface)?),
            route,
        ));
    }
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut all = RouteMessage::default();
        all.header.address_family = family;
        let present: Vec<_> = handle
            .route()
            .get(all)
            .execute()
            .try_collect()
            .await
            .map_err(failed("listing routes"))?;
        for message in present {
            // Only what an earlier call of this function made; the kernel's own routes follow
            // addresses and devices.
            let unwanted = message.header.protocol == RouteProtocol::Static
                && !wanted
                    .iter()
                    .any(|(wanted, _)| key(wanted) == key(&message));
            if unwanted {
                handle
                    .route()
                    .del(message)
                    .execute()
                    .await
                    .map_err(failed("removing a route that is no longer wanted"))?;
            }
        }
    }
    for (message, route) in wanted {
        let Prefix { address, length } = route.destination;
        handle
            .route()
            .add(message)
            .replace()
            .execute()
            .await
            .map_err(failed(format!("adding the route to {address}/{length}")))?;
    }
    Ok(())
}
