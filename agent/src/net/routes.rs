//! Routes and policy rules of the guest, by netlink: those of an earlier call go, those given come in
//! their order.

use std::collections::HashMap;
use std::net::IpAddr;

use futures::{StreamExt as _, TryStreamExt as _};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
};
use rtnetlink::packet_route::rule::{RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, IpVersion};
use rustix::io::Errno;

use super::model::{Prefix, Route};
use super::{NetError, failed, index_of};

/// Tables above this are in an attribute alone (RT_TABLE_COMPAT stands in the header then).
const TABLE_COMPAT: u8 = 252;

fn family(address: &IpAddr) -> AddressFamily {
    if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

fn route_message(route: &Route, index: Option<u32>) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(&route.destination.address);
    header.destination_prefix_length = route.destination.length;
    header.table = u8::try_from(route.table).unwrap_or(TABLE_COMPAT);
    header.protocol = RouteProtocol::Static;
    header.kind = route.kind;
    header.scope = RouteScope::from(route.scope);
    if route.onlink {
        header.flags |= RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Table(route.table));
    attributes.extend(index.map(RouteAttribute::Oif));
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

/// Sets the routes that this module makes (those marked as static) to exactly these. The kernel's
/// own follow addresses and devices.
///
/// # Errors
/// For the first that the kernel refuses.
pub(super) async fn set_routes(
    handle: &Handle,
    routes: &[Route],
    indexes: &HashMap<&str, u32>,
) -> Result<(), NetError> {
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
            if message.header.protocol == RouteProtocol::Static {
                handle
                    .route()
                    .del(message)
                    .execute()
                    .await
                    .map_err(failed("removing a route of an earlier set-up"))?;
            }
        }
    }
    for route in routes {
        let index = match &route.interface {
            Some(name) => Some(index_of(indexes, name)?),
            None => None,
        };
        let Prefix { address, length } = route.destination;
        let mut message = route_message(route, index);
        let mut added = append(handle, message.clone()).await;
        if route.gateway.is_some() && added.as_ref().is_err_and(is_unreachable) {
            // Where it comes from it is there: the way to its gateway was taken to another table
            // afterwards.
            message.header.flags |= RouteFlags::Onlink;
            added = append(handle, message).await;
        }
        added.map_err(failed(format!("adding the route to {address}/{length}")))?;
    }
    Ok(())
}

fn is_unreachable(error: &rtnetlink::Error) -> bool {
    let rtnetlink::Error::NetlinkError(error) = error else {
        return false;
    };
    let errno = error.to_io().raw_os_error();
    [Errno::NETUNREACH, Errno::HOSTUNREACH]
        .map(|e| Some(e.raw_os_error()))
        .contains(&errno)
}

/// Adds a route behind those to the same destination: of IPv4 the first is used, of IPv6 they share
/// the traffic, as where they come from. (`Handle::route` can only refuse or replace.)
async fn append(handle: &Handle, route: RouteMessage) -> Result<(), rtnetlink::Error> {
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewRoute(route));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND;
    let mut answers = handle.clone().request(request)?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = answer.payload
            && error.code.is_some()
        {
            return Err(rtnetlink::Error::NetlinkError(error));
        }
    }
    Ok(())
}

/// Sets the policy rules that this module makes (those marked as static) to exactly these.
///
/// # Errors
/// For the first that the kernel refuses.
pub(super) async fn set_rules(handle: &Handle, rules: &[RuleMessage]) -> Result<(), NetError> {
    let ours = RuleAttribute::Protocol(RouteProtocol::Static);
    for version in [IpVersion::V4, IpVersion::V6] {
        let present: Vec<_> = handle
            .rule()
            .get(version)
            .execute()
            .try_collect()
            .await
            .map_err(failed("listing policy rules"))?;
        for message in present {
            if message.attributes.contains(&ours) {
                handle
                    .rule()
                    .del(message)
                    .execute()
                    .await
                    .map_err(failed("removing a policy rule of an earlier set-up"))?;
            }
        }
    }
    for rule in rules {
        let mut request = handle.rule().add();
        *request.message_mut() = rule.clone();
        request
            .execute()
            .await
            .map_err(failed("adding a policy rule"))?;
    }
    Ok(())
}
