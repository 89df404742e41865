//! Configures the guest's devices to match the model, by netlink. Repeatable: what the model does
//! not have is removed, what it has stays. Routes and policy rules are in `routes`.

use std::collections::HashMap;
use std::net::IpAddr;

use futures::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::{Handle, LinkUnspec};

use super::model::{Interface, Network, Prefix};
use super::routes::{set_routes, set_rules};
use super::{NetError, failed, index_of, sysctl};
use crate::{blocking, disk};

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

async fn links(handle: &Handle) -> Result<Vec<Link>, NetError> {
    handle
        .link()
        .get()
        .execute()
        .map_ok(|message| link_of(&message))
        .try_collect()
        .await
        .map_err(failed("listing network devices"))
}

/// The device of an interface. An earlier call may have given it its name and its other address,
/// which two can have in common (ipvlan).
fn device_of<'a>(links: &'a [Link], interface: &Interface) -> Option<&'a Link> {
    let by = |mac: Option<[u8; 6]>, name: Option<&str>| {
        links.iter().find(|link| {
            mac.is_some() && link.mac == mac && name.is_none_or(|name| link.name == name)
        })
    };
    by(Some(interface.mac), None)
        .or_else(|| by(interface.hardware_address, Some(&interface.name)))
        .or_else(|| by(interface.hardware_address, None))
}

/// Sets interfaces, routes, rules and neighbours to exactly what is given.
///
/// # Errors
/// For the first step that fails; calling again continues from there.
pub async fn apply(network: &Network) -> Result<(), NetError> {
    let handle = connect()?;
    let mut links_now = links(&handle).await?;
    let lacking = |links: &[Link]| {
        let missing = |interface: &&Interface| device_of(links, interface).is_none();
        network.interfaces.iter().find(missing).map(|one| one.mac)
    };
    if lacking(&links_now).is_some() {
        // Those beyond the first are plugged while the guest boots. A rescan probes what it finds
        // before it returns; without one it is missing still.
        if let Err(error) = blocking::run(disk::rescan).await {
            tracing::warn!("looking for network devices: {error}");
        }
        links_now = links(&handle).await?;
    }
    if let Some(mac) = lacking(&links_now) {
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        return Err(NetError::NoDevice { mac });
    }
    let devices: Vec<_> = network
        .interfaces
        .iter()
        .filter_map(|interface| Some((device_of(&links_now, interface)?, interface)))
        .collect();
    for (link, interface) in &devices {
        name_link(&handle, link, &interface.name, &links_now).await?;
    }
    // Their files have the devices' names; what they say of addresses and routers holds from the
    // moment in which a device is up.
    sysctl::set_as_possible(&network.sysctls);
    let mut indexes = HashMap::new();
    for (link, interface) in &devices {
        set_link(&handle, link, interface).await?;
        set_addresses(&handle, link.index, interface).await?;
        indexes.insert(interface.name.as_str(), link.index);
    }
    set_routes(&handle, &network.routes, &indexes).await?;
    set_rules(&handle, &network.rules).await?;
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

/// Gives a device its name. One that has this name (the kernel counts eth0, eth1… in the order in which
/// it finds them) gets another for now.
async fn name_link(handle: &Handle, link: &Link, name: &str, all: &[Link]) -> Result<(), NetError> {
    if link.name == name {
        return Ok(());
    }
    let holder = all
        .iter()
        .find(|other| other.name == name && other.index != link.index);
    if let Some(holder) = holder {
        let aside = format!("aside{}", holder.index);
        // It may have been renamed already, when its own turn came.
        if still_named(handle, holder).await? {
            rename(handle, holder, &aside).await?;
        }
    }
    rename(handle, link, name).await
}

async fn still_named(handle: &Handle, link: &Link) -> Result<bool, NetError> {
    let now = links(handle).await?;
    Ok(now
        .iter()
        .any(|other| other.index == link.index && other.name == link.name))
}

async fn rename(handle: &Handle, link: &Link, name: &str) -> Result<(), NetError> {
    if link.up {
        let down = LinkUnspec::new_with_index(link.index).down().build();
        change(handle, down, format!("setting {} down", link.name)).await?;
    }
    let rename = LinkUnspec::new_with_index(link.index)
        .name(name.to_owned())
        .build();
    change(handle, rename, format!("renaming {} to {name}", link.name)).await
}

async fn change(handle: &Handle, message: LinkMessage, what: String) -> Result<(), NetError> {
    let set = handle.link().set(message).execute().await;
    set.map_err(failed(what))
}

async fn set_link(handle: &Handle, link: &Link, interface: &Interface) -> Result<(), NetError> {
    let name = &interface.name;
    if let Some(address) = interface
        .hardware_address
        .filter(|new| link.mac != Some(*new))
    {
        let new = LinkUnspec::new_with_index(link.index)
            .address(address.to_vec())
            .build();
        let what = format!("changing the hardware address of {name}");
        change(handle, new, what).await?;
    }
    if interface.mtu != 0 && interface.mtu != link.mtu {
        let mtu = LinkUnspec::new_with_index(link.index)
            .mtu(interface.mtu)
            .build();
        let what = format!("setting the MTU of {name} to {}", interface.mtu);
        change(handle, mtu, what).await?;
    }
    let up = LinkUnspec::new_with_index(link.index)
        .arp(!interface.no_arp)
        .up()
        .build();
    change(handle, up, format!("setting {name} up")).await
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
        let mut flags = AddressFlags::empty();
        if prefix.address.is_ipv6() {
            // The address is the pod's alone, and duplicate detection would leave it unusable
            // for a second.
            flags |= AddressFlags::Nodad;
        }
        if interface.without_route.contains(prefix) {
            flags |= AddressFlags::Noprefixroute;
        }
        if !flags.is_empty() {
            let flags = AddressAttribute::Flags(flags);
            request.message_mut().attributes.push(flags);
        }
        request.execute().await.map_err(failed(format!(
            "adding address {}/{}",
            prefix.address, prefix.length
        )))?;
    }
    Ok(())
}
