//! Two folders of Hot Pocket 0.1, as they were: configuration in JSON, and a contract that knows that version alone.

use std::fs;

use crate::net::{Net, block_on, compile, free_ports, write_config};

const CONFIGS: [&str; 2] =
    [include_str!("../../golden/legacy-node-a.hp.cfg"), include_str!("../../golden/legacy-node-b.hp.cfg")];

#[test]
fn two_nodes_with_configurations_and_a_contract_of_0_1_work_as_they_did() {
    block_on(async {
        let folder = tempfile::tempdir().expect("a folder");
        let ports = free_ports(4);
        let mut dirs = Vec::new();
        for (name, config) in ["a", "b"].iter().zip(CONFIGS) {
            let dir = folder.path().join(name);
            // Nothing but the ports, which may be taken on this machine.
            let text =
                ["22860", "22861", "8080", "8081"].iter().zip(&ports).fold(config.to_owned(), |text, (old, new)| {
                    assert!(text.contains(&format!("{old}\"")) || old.starts_with("80"), "{old} is in the file");
                    text.replace(&format!("{old}\""), &format!("{}\"", new.port()))
                });
            write_config(&dir, &text);
            fs::create_dir_all(dir.join("bin")).expect("a folder");
            compile("legacy.c", &dir.join("bin/contract"));
            dirs.push(dir);
        }
        let mut net = Net::of(folder, dirs);
        net.start_all().await;
        for node in &mut net.nodes {
            // They listen on all interfaces, as they were told to.
            node.url = node.url.replace("0.0.0.0", "127.0.0.1");
        }
        let (mut a, mut b) = (net.nodes[0].user().await, net.nodes[1].user().await);
        assert_eq!(a.ask("hello").await, "1 hello");
        assert_eq!(b.ask("from the other side").await, "2 from the other side");
        assert_eq!(a.ask("again").await, "3 again");
        net.agree().await;
        for node in &net.nodes {
            assert_eq!(node.state("count"), "3");
        }
    });
}
