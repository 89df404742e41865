//! Who a container runs as, by the files that it sees, and what that user may enter.

use std::{fs, os::unix::fs::PermissionsExt as _};

use bulkhead_proto::cri::{Capability, ContainerConfig, Int64Value};

use super::support::{HANDLERS, cannot_start, said, secured};
use crate::{
    Outcome,
    cases::{
        BUSYBOX, logs,
        volumes::{Scratch, mount, with},
    },
    check,
    cri::script,
    suite::{Context, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!("image_config", home_is_that_of_a_mounted_passwd_file),
        test!("image_config", a_working_directory_is_entered_as_the_user),
        test!("image_config", a_user_may_be_in_many_groups),
    ]
}

async fn home_is_that_of_a_mounted_passwd_file(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let scratch = Scratch::new("passwd")?;
    let (passwd, group) = (scratch.0.join("passwd"), scratch.0.join("group"));
    fs::write(&passwd, "someone:x:4321:8765::/home/of/someone:/bin/sh\n")?;
    fs::write(&group, "of-someone:x:8765:\n")?;
    for handler in HANDLERS {
        let (config, dir) = logs::logging_pod(context, &format!("passwd-{handler}"));
        let id = cri.run_pod_on(handler, config.clone()).await?;
        let text = "echo $HOME $(id -u) $(id -g)";
        let seen_by = |name: &str, text: &str, user: Result<i64, &str>| {
            let made = with(
                script(name, BUSYBOX, text),
                vec![mount(&passwd, "/etc/passwd"), mount(&group, "/etc/group")],
            );
            secured(made, |security| match user {
                Ok(value) => security.run_as_user = Some(Int64Value { value }),
                Err(name) => security.run_as_username = name.to_owned(),
            })
        };
        for (name, user, expected) in [
            ("number", Ok(4321), "/home/of/someone 4321 8765\n"),
            ("name", Err("someone"), "/home/of/someone 4321 8765\n"),
            ("nobody", Ok(4322), "/ 4322 0\n"),
        ] {
            let made = seen_by(name, text, user);
            let (_, told) = said(context, (&id, &config, &dir), made).await?;
            check!(told == expected, "{handler}, {name}: {told:?}");
        }
        let made = seen_by("exec", "sleep 1000", Ok(4321));
        let made = cri.run(&id, &config, made).await?;
        let told = cri.shell(&made, text).await?;
        check!(
            told == "/home/of/someone 4321 8765\n",
            "{handler}: {told:?}"
        );
        cri.remove_pod(&id).await?;
    }
    Ok(())
}

async fn a_working_directory_is_entered_as_the_user(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let scratch = Scratch::new("private")?;
    let private = scratch.dir("private")?;
    fs::set_permissions(&private, fs::Permissions::from_mode(0o700))?;
    fs::create_dir(private.join("inner"))?;
    for handler in HANDLERS {
        let (config, _) = logs::logging_pod(context, &format!("private-{handler}"));
        let id = cri.run_pod_on(handler, config.clone()).await?;
        let of = |name: &str, user: i64| {
            let made = ContainerConfig {
                working_dir: "/data/inner".to_owned(),
                ..with(
                    script(name, BUSYBOX, "sleep 1000"),
                    vec![mount(&private, "/data")],
                )
            };
            secured(made, |security| {
                security.run_as_user = Some(Int64Value { value: user });
                // Among what a container has by default is the right to enter any directory.
                security.capabilities = Some(Capability {
                    drop_capabilities: vec!["ALL".to_owned()],
                    ..Capability::default()
                });
            })
        };
        let made = cri.create(&id, &config, of("other", 1000)).await?;
        cannot_start(cri, &made, "permission denied").await?;
        let made = cri.run(&id, &config, of("owner", 0)).await?;
        let told = cri.shell(&made, "pwd").await?;
        check!(told == "/data/inner\n", "{handler}: {told:?}");
        cri.remove_pod(&id).await?;
    }
    Ok(())
}

async fn a_user_may_be_in_many_groups(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let groups: Vec<i64> = (100_000..105_000).collect();
    for handler in HANDLERS {
        let (config, dir) = logs::logging_pod(context, &format!("groups-{handler}"));
        let id = cri.run_pod_on(handler, config.clone()).await?;
        let made = secured(
            script("many", BUSYBOX, "grep ^Groups: /proc/self/status | wc -w"),
            |security| {
                security.run_as_user = Some(Int64Value { value: 4321 });
                security.run_as_group = Some(Int64Value { value: 4321 });
                security.supplemental_groups.clone_from(&groups);
            },
        );
        let (status, told) = said(context, (&id, &config, &dir), made).await?;
        // The word in front, and the user's own.
        check!(told == "5002\n", "{handler}: {told:?}");
        let user = status.user.and_then(|user| user.linux).unwrap_or_default();
        check!(
            user.supplemental_groups.len() == 5001,
            "{handler}: {}",
            user.supplemental_groups.len()
        );
        cri.remove_pod(&id).await?;
    }
    Ok(())
}
