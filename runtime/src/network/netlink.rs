//! Questions and changes by netlink in a pod's namespace. What is asked and changed, and why, is
//! in `link` and `describe`.

use std::path::PathBuf;

use futures::TryStreamExt as _;
use rtnetlink::{
    Handle, IpVersion, LinkUnspec,
    packet_route::{
        AddressFamily,
        address::AddressMessage,
        link::{LinkAttribute, LinkMessage},
        neighbour::NeighbourMessage,
        route::RouteMessage,
        rule::RuleMessage,
    },
};

use super::NetworkError;

/// `ETH_P_ALL`, big-endian as tc has it.
const ALL_PROTOCOLS: u16 = 0x0003_u16.to_be();
/// The handle of an ingress qdisc, `ffff:`.
const INGRESS: u32 = 0xffff_0000;

/// A netlink socket of the namespace the thread is in.
pub(super) struct Netlink {
    handle: Handle,
    path: PathBuf,
}

impl Netlink {
    pub(super) fn open(path: PathBuf) -> Result<Self, NetworkError> {
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

    pub(super) fn missing(&self, name: &'static str) -> NetworkError {
        NetworkError::NoInterface {
            name,
            path: self.path.clone(),
        }
    }

    pub(super) async fn links(&self) -> Result<Vec<LinkMessage>, NetworkError> {
        let all = self.handle.link().get().execute().try_collect().await;
        all.map_err(self.failed("list the interfaces"))
    }

    pub(super) async fn link(&self, name: &'static str) -> Result<LinkMessage, NetworkError> {
        let links = self.links().await?;
        let found = links.into_iter().find(|link| name_of(link) == Some(name));
        found.ok_or_else(|| self.missing(name))
    }

    pub(super) async fn addresses(&self) -> Result<Vec<AddressMessage>, NetworkError> {
        let all = self.handle.address().get().execute().try_collect().await;
        all.map_err(self.failed("list the addresses"))
    }

    /// Of both families, each in the kernel's order.
    pub(super) async fn routes(&self) -> Result<Vec<RouteMessage>, NetworkError> {
        let mut all = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut question = RouteMessage::default();
            question.header.address_family = family;
            let found = self.handle.route().get(question).execute().try_collect();
            let found: Vec<_> = found.await.map_err(self.failed("list the routes"))?;
            all.extend(found);
        }
        Ok(all)
    }

    /// Of both families.
    pub(super) async fn rules(&self) -> Result<Vec<RuleMessage>, NetworkError> {
        let mut all = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let found = self.handle.rule().get(version).execute().try_collect();
            match found.await {
                Ok(found) => all.extend::<Vec<_>>(found),
                // A kernel without policy routing, or without IPv6, has none.
                Err(rtnetlink::Error::NetlinkError(error)) if unsupported(error.raw_code()) => {}
                Err(error) => return Err(self.failed("list the policy rules")(error)),
            }
        }
        Ok(all)
    }

    pub(super) async fn neighbours(&self) -> Result<Vec<NeighbourMessage>, NetworkError> {
        let all = self.handle.neighbours().get().execute().try_collect().await;
        all.map_err(self.failed("list the neighbours"))
    }

    pub(super) async fn up(&self, index: u32, mtu: Option<u32>) -> Result<(), NetworkError> {
        let mut message = LinkUnspec::new_with_index(index).up();
        if let Some(mtu) = mtu {
            message = message.mtu(mtu);
        }
        let set = self.handle.link().set(message.build()).execute().await;
        set.map_err(self.failed("set an interface up"))
    }

    /// Every frame that comes in at one goes out at the other.
    pub(super) async fn redirect(&self, from: u32, to: u32) -> Result<(), NetworkError> {
        let from = i32::try_from(from).unwrap_or(i32::MAX);
        let added = self.handle.qdisc().add(from).ingress().execute().await;
        added.map_err(self.failed("add an ingress qdisc"))?;
        let filter = self
            .handle
            .traffic_filter(from)
            .add()
            .parent(INGRESS)
            .protocol(ALL_PROTOCOLS)
            .redirect(to)
            .map_err(self.failed("build a redirect"))?;
        let added = filter.execute().await;
        added.map_err(self.failed("redirect an interface's frames"))
    }
}

/// EOPNOTSUPP and EAFNOSUPPORT.
fn unsupported(code: i32) -> bool {
    [
        rustix::io::Errno::OPNOTSUPP.raw_os_error(),
        rustix::io::Errno::AFNOSUPPORT.raw_os_error(),
    ]
    .contains(&code.saturating_neg())
}

/// The name of an interface.
pub(super) fn name_of(link: &LinkMessage) -> Option<&str> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.as_str()),
            _ => None,
        })
}
