//! What a kubelet keeps up to date and in bounds in a pod's volumes.

use super::super::{
    case::Case,
    cluster::Cluster,
    manifests::{BUSYBOX, pod},
};
use crate::{Outcome, case, check};

pub(super) fn cases() -> Vec<Case> {
    vec![
        case!(configmap_and_secret_updates_are_seen),
        case!(projected_tokens_and_downward_api),
        case!(emptydir_over_its_limit_evicts),
        case!(memory_emptydir_is_bounded),
        case!(fs_group_and_users_own_files),
        case!(local_claim_is_shared_by_two_containers),
    ]
}

async fn configmap_and_secret_updates_are_seen(cluster: &Cluster) -> Outcome {
    let objects = |value: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: turning}}\ndata: {{key: {value}-map}}\n---\n\
             apiVersion: v1\nkind: Secret\nmetadata: {{name: turning}}\nstringData: {{key: {value}-secret}}\n"
        )
    };
    cluster.apply(&objects("old")).await?;
    let volumes = "volumes: [{name: map, configMap: {name: turning}}, {name: secret, secret: {secretName: turning, defaultMode: 256}}]";
    let mounts = "volumeMounts: [{name: map, mountPath: /map}, {name: secret, mountPath: /secret}, \
        {name: map, mountPath: /one/key, subPath: key}], resources: {limits: {memory: 32Mi}}";
    cluster
        .apply(&pod("turning", "exec sleep 100000", volumes, mounts))
        .await?;
    cluster.ready("turning").await?;
    let look = "cat /map/key /secret/key /one/key; stat -Lc %a /secret/key";
    let seen = cluster.exec("turning", look).await?;
    check!(seen == "old-mapold-secretold-map400\n", "at first {seen}");
    cluster.apply(&objects("new")).await?;
    // A single file is never turned.
    let wanted = "new-mapnew-secretold-map400\n";
    cluster
        .exec_until("turning", look, |seen| seen == wanted)
        .await?;
    cluster.delete("pod/turning").await
}

async fn projected_tokens_and_downward_api(cluster: &Cluster) -> Outcome {
    let volumes = "volumes: [{name: all, projected: {sources: [\
        {serviceAccountToken: {path: token, audience: vault, expirationSeconds: 600}}, \
        {configMap: {name: kube-root-ca.crt}}, \
        {downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, \
        {path: limit, resourceFieldRef: {containerName: main, resource: limits.memory}}]}}]}}]";
    let container = "env: [{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}, \
        {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}], \
        volumeMounts: [{name: all, mountPath: /all}], resources: {limits: {memory: 48Mi}}";
    cluster
        .apply(&pod("projected", "exec sleep 100000", volumes, container))
        .await?;
    cluster.ready("projected").await?;
    let ip = cluster.get("pod/projected").await?["status"]["podIP"].clone();
    let look = "echo $IP $NODE; cat /all/limit; echo; cut -d. -f2 /all/token | tr -d '\\n' | tr '_-' '/+' | base64 -d 2>/dev/null; \
        grep -c BEGIN /all/ca.crt; hostname -i";
    let seen = cluster.exec("projected", look).await?;
    let first = format!("{} node1\n50331648\n", ip.as_str().unwrap_or_default());
    check!(
        seen.starts_with(&first)
            && seen.contains("\"aud\":[\"vault\"]")
            && seen.contains("projected"),
        "in the pod: {seen}"
    );
    cluster
        .kubectl
        .run(&["label", "pod", "projected", "turned=yes"])
        .await?;
    cluster
        .exec_until("projected", "cat /all/labels", |seen| {
            seen.contains("turned=\"yes\"")
        })
        .await?;
    cluster.delete("pod/projected").await
}

async fn emptydir_over_its_limit_evicts(cluster: &Cluster) -> Outcome {
    let volumes = "volumes: [{name: small, emptyDir: {sizeLimit: 4Mi}}]";
    let mounts =
        "volumeMounts: [{name: small, mountPath: /small}], resources: {limits: {memory: 32Mi}}";
    let script = "dd if=/dev/zero of=/small/file bs=1M count=10 2>/dev/null; exec sleep 100000";
    cluster
        .apply(&pod("greedy", script, volumes, mounts))
        .await?;
    let ended = cluster.ended("greedy").await?;
    let status = &ended["status"];
    let message = status["message"].as_str().unwrap_or_default();
    check!(
        status["reason"] == "Evicted"
            && message.contains("EmptyDir volume \"small\" exceeds the limit"),
        "it ended so: {status}"
    );
    cluster.delete("pod/greedy").await
}

async fn memory_emptydir_is_bounded(cluster: &Cluster) -> Outcome {
    let volumes = "restartPolicy: Never, volumes: [{name: fast, emptyDir: {medium: Memory, sizeLimit: 16Mi}}]";
    let mounts =
        "volumeMounts: [{name: fast, mountPath: /fast}], resources: {limits: {memory: 64Mi}}";
    let script = "grep ' /fast ' /proc/mounts | cut -d' ' -f3; df -m /fast | tail -n 1 | tr -s ' ' | cut -d' ' -f2; \
        dd if=/dev/zero of=/fast/file bs=1M count=20 2>&1 | grep -c 'No space left'; stat -c %s /fast/file";
    let seen = cluster
        .succeeds("fast", &pod("fast", script, volumes, mounts))
        .await?;
    check!(seen == "tmpfs\n16\n1\n16777216\n", "in the pod: {seen}");
    Ok(())
}

async fn fs_group_and_users_own_files(cluster: &Cluster) -> Outcome {
    let spec = "restartPolicy: Never, securityContext: {runAsUser: 1234, runAsGroup: 2345, fsGroup: 3456, supplementalGroups: [4567]}, \
        volumes: [{name: dir, emptyDir: {}}, {name: token, projected: {sources: [{downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}]}}]";
    let container = "securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}, \
        volumeMounts: [{name: dir, mountPath: /dir}, {name: token, mountPath: /token}, {name: dir, mountPath: /part, subPath: a/b}], \
        resources: {limits: {memory: 32Mi}}";
    let script = "id -u; id -g; id -G; touch /dir/file /part/inner; stat -c '%u %g' /dir/file; stat -c %g /dir /token/..data/name; ls /dir/a/b; \
        touch /file 2>&1; grep -E '^(CapEff|NoNewPrivs)' /proc/self/status | tr -s '\\t' ' '";
    let seen = cluster
        .succeeds("owner", &pod("owner", script, spec, container))
        .await?;
    let wanted = "1234\n2345\n2345 3456 4567\n1234 3456\n3456\n3456\ninner\ntouch: /file: Read-only file system\n\
        CapEff: 0000000000000000\nNoNewPrivs: 1\n";
    check!(seen == wanted, "in the pod: {seen}");
    Ok(())
}

async fn local_claim_is_shared_by_two_containers(cluster: &Cluster) -> Outcome {
    let manifest = format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: shared}}
spec:
  restartPolicy: Never
  volumes: [{{name: data, hostPath: {{path: /var/lib/bulkhead/local-volumes/2, type: Directory}}}}]
  containers:
  - name: main
    image: "{BUSYBOX}"
    command: [sh, -c, 'mkfifo /data/pipe; cat /data/pipe; flock -n /data/lock echo free || echo held']
    volumeMounts: [{{name: data, mountPath: /data}}]
    resources: {{limits: {{memory: 32Mi}}}}
  - name: other
    image: "{BUSYBOX}"
    command: [sh, -c, 'until [ -p /data/pipe ]; do sleep 1; done; flock /data/lock sh -c "echo through the pipe >/data/pipe; sleep 5"']
    volumeMounts: [{{name: data, mountPath: /data, mountPropagation: HostToContainer}}]
    resources: {{limits: {{memory: 32Mi}}}}
"#
    );
    cluster.apply(&manifest).await?;
    cluster.ended("shared").await?;
    let said = cluster
        .kubectl
        .run(&["logs", "shared", "-c", "main"])
        .await?;
    check!(said == "through the pipe\nheld\n", "main said {said}");
    cluster.delete("pod/shared").await
}
