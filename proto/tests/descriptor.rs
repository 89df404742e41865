//! The wire contract is what the table says: every message, field, enum value and RPC of the
//! compiled CRI descriptor is in `cri-v1-fields.tsv`, and nothing of the table is missing. The
//! agent's fields are ours to number, and leave no gaps.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use std::collections::BTreeSet;

use prost::Message as _;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};

const PACKAGE: &str = ".runtime.v1.";

fn table() -> BTreeSet<String> {
    let text = include_str!("cri-v1-fields.tsv");
    let line = |line: &str| line.split('\t').take(5).collect::<Vec<_>>().join("\t");
    text.lines()
        .skip(1)
        .filter(|l| !l.is_empty())
        .map(line)
        .collect()
}

fn compiled() -> BTreeSet<String> {
    let set = FileDescriptorSet::decode(bulkhead_proto::DESCRIPTORS).unwrap();
    let file = set
        .file
        .iter()
        .find(|f| f.package() == "runtime.v1")
        .unwrap();
    let mut lines = BTreeSet::new();
    for message in &file.message_type {
        describe("", message, &mut lines);
    }
    for values in &file.enum_type {
        describe_enum("", values, &mut lines);
    }
    for service in &file.service {
        for rpc in &service.method {
            assert!(!rpc.client_streaming(), "{}", rpc.name());
            let stream = if rpc.server_streaming() {
                "stream "
            } else {
                ""
            };
            let (input, output) = (short(rpc.input_type()), short(rpc.output_type()));
            lines.insert(format!(
                "rpc\t{}\t\t{input} -> {stream}{output}\t{}",
                service.name(),
                rpc.name()
            ));
        }
    }
    lines
}

fn short(name: &str) -> &str {
    name.strip_prefix(PACKAGE).unwrap()
}

fn describe(outer: &str, message: &DescriptorProto, lines: &mut BTreeSet<String>) {
    let name = format!("{outer}{}", message.name());
    if message.field.is_empty() {
        lines.insert(format!("message\t{name}\t\t(no fields)\t"));
    }
    for field in &message.field {
        let line = format!(
            "field\t{name}\t{}\t{}\t{}",
            field.number(),
            type_of(message, field),
            field.name()
        );
        lines.insert(line);
    }
    for nested in &message.nested_type {
        if !nested.options.as_ref().is_some_and(|o| o.map_entry()) {
            describe(&format!("{name}."), nested, lines);
        }
    }
    for values in &message.enum_type {
        describe_enum(&format!("{name}."), values, lines);
    }
}

fn describe_enum(outer: &str, values: &EnumDescriptorProto, lines: &mut BTreeSet<String>) {
    for value in &values.value {
        lines.insert(format!(
            "enum\t{outer}{}\t{}\t\t{}",
            values.name(),
            value.number(),
            value.name()
        ));
    }
}

fn type_of(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let entry = message.nested_type.iter().find(|nested| {
        nested.options.as_ref().is_some_and(|o| o.map_entry())
            && field
                .type_name()
                .ends_with(&format!(".{}.{}", message.name(), nested.name()))
    });
    if let Some(entry) = entry {
        let of = |number| entry.field.iter().find(|f| f.number() == number).unwrap();
        return format!("map<{},{}>", type_of(entry, of(1)), type_of(entry, of(2)));
    }
    let plain = match field.r#type() {
        Type::Message | Type::Enum => {
            let name = short(field.type_name());
            // Inside its message a nested type goes by its own name.
            name.strip_prefix(&format!("{}.", message.name()))
                .unwrap_or(name)
                .to_owned()
        }
        kind => kind
            .as_str_name()
            .trim_start_matches("TYPE_")
            .to_lowercase(),
    };
    match field.label() {
        Label::Repeated => format!("repeated {plain}"),
        _ => plain,
    }
}

#[test]
fn the_compiled_contract_is_the_table() {
    let (table, compiled) = (table(), compiled());
    let missing: Vec<_> = table.difference(&compiled).collect();
    let extra: Vec<_> = compiled.difference(&table).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "in the table only: {missing:#?}\ncompiled only: {extra:#?}"
    );
    assert_eq!(table.iter().filter(|l| l.starts_with("rpc\t")).count(), 43);
}

#[test]
fn the_agents_fields_are_numbered_without_gaps() {
    let set = FileDescriptorSet::decode(bulkhead_proto::DESCRIPTORS).unwrap();
    let file = set
        .file
        .iter()
        .find(|f| f.package() == "bulkhead.agent.v1")
        .unwrap();
    let mut messages: Vec<_> = file.message_type.iter().collect();
    while let Some(message) = messages.pop() {
        messages.extend(&message.nested_type);
        let fields = message.field.iter().map(FieldDescriptorProto::number);
        // A field that went leaves its number reserved.
        let reserved = message.reserved_range.iter();
        let mut numbers: Vec<_> = fields
            .chain(reserved.flat_map(|range| range.start()..range.end()))
            .collect();
        numbers.sort_unstable();
        let last = i32::try_from(numbers.len()).unwrap();
        let expected: Vec<_> = (1..=last).collect();
        assert_eq!(numbers, expected, "{}", message.name());
    }
}
