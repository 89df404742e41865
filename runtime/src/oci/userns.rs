//! User namespaces: what CRI's `userns_options` of a pod and of its containers ask for.
//!
//! The namespace is made in the guest, by the agent, one for the whole pod; here is only whether
//! it can be made as asked. Pure.

use bulkhead_proto::{
    agent,
    cri::{self, NamespaceMode},
};

use super::OciError;

/// The field, as errors name it.
const FIELD: &str = "namespace_options.userns_options";

/// The namespace a pod asks for; `None` is the guest's own.
pub fn of_pod(
    asked: Option<&cri::UserNamespace>,
) -> Result<Option<agent::UserNamespace>, OciError> {
    let Some(asked) = asked else {
        return Ok(None);
    };
    match NamespaceMode::try_from(asked.mode) {
        Ok(NamespaceMode::Node) => {
            if asked.uids.is_empty() && asked.gids.is_empty() {
                Ok(None)
            } else {
                Err(OciError::Invalid {
                    field: FIELD,
                    value: "NODE with mappings".to_owned(),
                    allowed: "mappings only with mode POD",
                })
            }
        }
        Ok(NamespaceMode::Pod) => Ok(Some(agent::UserNamespace {
            uids: Some(range(&asked.uids, "userns_options.uids")?),
            gids: Some(range(&asked.gids, "userns_options.gids")?),
        })),
        Ok(mode @ (NamespaceMode::Container | NamespaceMode::Target)) => Err(OciError::Invalid {
            field: FIELD,
            value: mode.as_str_name().to_owned(),
            allowed: "mode POD or NODE: a pod's containers share its user namespace",
        }),
        Err(_) => Err(OciError::Invalid {
            field: FIELD,
            value: asked.mode.to_string(),
            allowed: "mode POD (0) or NODE (2)",
        }),
    }
}

/// CRI: exactly one mapping; the container's root must exist.
fn range(mappings: &[cri::IdMapping], field: &'static str) -> Result<agent::IdRange, OciError> {
    let refused = |value: String, allowed| OciError::Invalid {
        field,
        value,
        allowed,
    };
    let [mapping] = mappings else {
        let value = format!("{} mappings", mappings.len());
        return Err(refused(value, "exactly one mapping"));
    };
    if mapping.container_id != 0 {
        let value = format!("container_id {}", mapping.container_id);
        return Err(refused(value, "a mapping that begins at container_id 0"));
    }
    // The last id is (uid_t)-1, which is not a valid one.
    let end = u64::from(mapping.host_id) + u64::from(mapping.length);
    if mapping.length == 0 || end > u64::from(u32::MAX) {
        let value = format!("host_id {}, length {}", mapping.host_id, mapping.length);
        return Err(refused(value, "a length above 0, and ids up to 4294967294"));
    }
    Ok(agent::IdRange {
        first: mapping.host_id,
        length: mapping.length,
    })
}

/// Checks that a container asks for the namespace its pod has, or for nothing.
pub fn check_container(
    container: Option<&cri::NamespaceOption>,
    pod: Option<&cri::NamespaceOption>,
) -> Result<(), OciError> {
    let of = |options: Option<&cri::NamespaceOption>| {
        of_pod(options.and_then(|options| options.userns_options.as_ref()))
    };
    let pods = of(pod)?;
    if container.is_some_and(|own| own.userns_options.is_some()) && of(container)? != pods {
        return Err(OciError::Invalid {
            field: FIELD,
            value: "of the container".to_owned(),
            allowed: "what the pod sandbox was given",
        });
    }
    let node = i32::from(NamespaceMode::Node);
    if pods.is_some() && container.is_some_and(|own| own.pid == node) {
        return Err(OciError::Invalid {
            field: "namespace_options.pid",
            value: "NODE, in a pod with a user namespace".to_owned(),
            allowed: "POD, CONTAINER or TARGET there",
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(container_id: u32, host_id: u32, length: u32) -> cri::IdMapping {
        cri::IdMapping {
            host_id,
            container_id,
            length,
        }
    }

    fn asked(mode: NamespaceMode, mappings: &[cri::IdMapping]) -> cri::UserNamespace {
        cri::UserNamespace {
            mode: mode.into(),
            uids: mappings.to_vec(),
            gids: mappings.to_vec(),
        }
    }

    #[test]
    fn one_mapping_from_zero_is_a_namespace_and_nothing_else_is() {
        let of = |asked: &cri::UserNamespace| of_pod(Some(asked));
        let good = of(&asked(NamespaceMode::Pod, &[mapping(0, 1000, 100_000)])).unwrap();
        let uids = good.unwrap().uids.unwrap();
        assert_eq!((uids.first, uids.length), (1000, 100_000));
        assert_eq!(of_pod(None).unwrap(), None);
        assert_eq!(of(&asked(NamespaceMode::Node, &[])).unwrap(), None);
        for bad in [
            asked(NamespaceMode::Pod, &[]),
            asked(
                NamespaceMode::Pod,
                &[mapping(0, 1000, 10), mapping(0, 2000, 10)],
            ),
            asked(NamespaceMode::Pod, &[mapping(1, 1000, 10)]),
            asked(NamespaceMode::Pod, &[mapping(0, 1000, 0)]),
            asked(NamespaceMode::Pod, &[mapping(0, u32::MAX, 1)]),
            asked(NamespaceMode::Node, &[mapping(0, 1000, 10)]),
            asked(NamespaceMode::Container, &[]),
            asked(NamespaceMode::Target, &[]),
        ] {
            assert!(of(&bad).is_err(), "{bad:?}");
        }
        let two = cri::UserNamespace {
            gids: Vec::new(),
            ..asked(NamespaceMode::Pod, &[mapping(0, 1000, 10)])
        };
        assert!(of(&two).is_err(), "groups have no mapping");
    }

    #[test]
    fn a_container_has_its_pods_namespace() {
        let options = |userns: Option<cri::UserNamespace>| cri::NamespaceOption {
            userns_options: userns,
            pid: NamespaceMode::Container.into(),
            ..Default::default()
        };
        let own = options(Some(asked(NamespaceMode::Pod, &[mapping(0, 1000, 10)])));
        let other = options(Some(asked(NamespaceMode::Pod, &[mapping(0, 2000, 10)])));
        let nodes = options(Some(asked(NamespaceMode::Node, &[])));
        let silent = options(None);
        assert!(check_container(Some(&own), Some(&own)).is_ok());
        assert!(check_container(Some(&silent), Some(&own)).is_ok());
        assert!(check_container(None, Some(&own)).is_ok());
        assert!(check_container(Some(&nodes), None).is_ok());
        assert!(check_container(Some(&other), Some(&own)).is_err());
        assert!(check_container(Some(&nodes), Some(&own)).is_err());
        assert!(check_container(Some(&own), None).is_err());
        let node_pids = cri::NamespaceOption {
            pid: NamespaceMode::Node.into(),
            ..own.clone()
        };
        assert!(check_container(Some(&node_pids), Some(&own)).is_err());
    }
}
