//! Good and bad network configurations.

use super::*;

fn text(error: &NetworkError) -> String {
    error.to_string()
}

#[test]
fn a_list_and_a_single_plugin_are_networks() {
    let list = br#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge"},
        {"type":"portmap","capabilities":{"portMappings":true,"snat":false}}]}"#;
    let conf = parse(Path::new("a.conflist"), list).unwrap();
    assert_eq!((conf.name.as_str(), conf.plugins.len()), ("pods", 2));
    assert!(conf.plugins[1].has_capability("portMappings"));
    assert!(!conf.plugins[1].has_capability("snat"));
    assert!(!conf.disable_check && !conf.disable_gc);
    let one = parse(
        Path::new("b.conf"),
        br#"{"cniVersion":"0.4.0","name":"n","type":"ptp"}"#,
    );
    assert_eq!(one.unwrap().plugins[0].kind, "ptp");
}

#[test]
fn versions_and_switches_are_read_as_libcni_does() {
    let of = |more: &str| {
        let text = format!(r#"{{"name":"n","plugins":[{{"type":"a"}}]{more}}}"#);
        parse(Path::new("f.conflist"), text.as_bytes())
    };
    for (more, version) in [
        (r#","cniVersion":"0.3.0""#, "0.3.0"),
        (
            r#","cniVersion":"0.4.0","cniVersions":["1.0.0","1.1.0","0.3.1"]"#,
            "1.1.0",
        ),
        (r#","cniVersions":["1.0.0","1.2.0"]"#, "1.0.0"),
        (r#","cniVersion":"1.2.0","cniVersions":["0.4.0"]"#, "0.4.0"),
        ("", "0.1.0"),
        (r#","cniVersion":null,"cniVersions":null"#, "0.1.0"),
    ] {
        assert_eq!(of(more).unwrap().version, version, "{more}");
    }
    let on = of(r#","disableCheck":"True","disableGC":true"#).unwrap();
    assert!(on.disable_check && on.disable_gc);
    for (more, expected) in [
        (r#","disableGC":"yes""#, "true or false"),
        (r#","cniVersions":"1.0.0""#, "must be a list"),
        (r#","cniVersions":[1]"#, "must hold strings"),
        (r#","cniVersions":["1.2.0"]"#, "1.2.0"),
    ] {
        let error = text(&of(more).unwrap_err());
        assert!(error.contains(expected), "{more}: {error}");
    }
}

#[test]
fn plugins_come_from_files_of_their_own_unless_the_list_is_all() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let kinds = || {
        let conf = load(dir.path())?;
        let kinds: Vec<_> = conf.plugins.into_iter().map(|plugin| plugin.kind).collect();
        Ok::<_, NetworkError>(kinds.join(" "))
    };
    let list = |more: &str| {
        write(
            "10.conflist",
            &format!(r#"{{"cniVersion":"1.1.0","name":"pods"{more}}}"#),
        );
    };
    list("");
    assert!(text(&kinds().unwrap_err()).contains("no plugins"));
    fs::create_dir(dir.path().join("pods")).unwrap();
    write("pods/20-b.conf", r#"{"type":"second"}"#);
    write("pods/10-a.conf", r#"{"type":"first"}"#);
    write("pods/README", "x");
    write("pods/30-c.conflist", "{");
    assert_eq!(kinds().unwrap(), "first second");
    list(r#","plugins":[{"type":"inlined"}]"#);
    assert_eq!(kinds().unwrap(), "inlined first second");
    list(r#","plugins":[{"type":"inlined"}],"loadOnlyInlinedPlugins":true"#);
    assert_eq!(kinds().unwrap(), "inlined");
    list(r#","loadOnlyInlinedPlugins":true"#);
    assert!(text(&kinds().unwrap_err()).contains("loadOnlyInlinedPlugins"));
    list("");
    write("pods/40-d.conf", r#"{"type":"../../bin/sh"}"#);
    let error = text(&kinds().unwrap_err());
    assert!(error.contains("40-d.conf"), "{error}");
}

#[test]
fn what_is_wrong_is_named() {
    for (given, expected) in [
        (r"[]", "not a JSON object"),
        (
            r#"{"cniVersion":"1.0.0","plugins":[]}"#,
            "\"name\" is missing",
        ),
        (r#"{"cniVersion":"1.0.0","name":7}"#, "must be a string"),
        (
            r#"{"cniVersion":"1.0.0","name":"../x","type":"a"}"#,
            "letters, digits",
        ),
        (r#"{"cniVersion":"9.0.0","name":"x","type":"a"}"#, "1.1.0"),
        (r#"{"cniVersion":"1.0.0","name":"x","plugins":[]}"#, "empty"),
        (
            r#"{"cniVersion":"1.0.0","name":"x","plugins":[1]}"#,
            "objects",
        ),
        (
            r#"{"cniVersion":"1.0.0","name":"x","type":"../../bin/sh"}"#,
            "name of a program",
        ),
    ] {
        let error = text(&parse(Path::new("f.conflist"), given.as_bytes()).unwrap_err());
        assert!(
            error.contains(expected) && error.contains("f.conflist"),
            "{given}: {error}"
        );
    }
}

#[test]
fn the_first_file_by_name_counts_even_if_it_is_bad() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(
        load(dir.path()),
        Err(NetworkError::NoConfig { .. })
    ));
    assert!(matches!(
        load(&dir.path().join("none")),
        Err(NetworkError::NoConfig { .. })
    ));
    fs::write(dir.path().join("README"), "x").unwrap();
    assert!(matches!(
        load(dir.path()),
        Err(NetworkError::NoConfig { .. })
    ));
    fs::write(
        dir.path().join("20-b.conf"),
        r#"{"cniVersion":"1.0.0","name":"second","type":"ptp"}"#,
    )
    .unwrap();
    assert_eq!(load(dir.path()).unwrap().name, "second");
    fs::write(dir.path().join("10-a.conflist"), "{").unwrap();
    assert!(matches!(
        load(dir.path()),
        Err(NetworkError::BadConfig { .. })
    ));
}
