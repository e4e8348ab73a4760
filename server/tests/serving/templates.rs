//! A checkpoint with a chat template, and a server that has nothing to run it in. What templates do is tested where there is a process for
//! them: with the command.

use tilewright::engine::EngineConfig;
use tilewright::{DeviceChoice, Engine, Model};
use tilewright_server::{ServeError, Server, ServerConfig};

use super::client::demo_dir;

#[test]
fn a_template_is_not_run_in_the_server() {
    let dir = tempfile::tempdir().expect("a folder");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(demo_dir("draft").join(file), dir.path().join(file)).expect("a copy");
    }
    std::fs::write(dir.path().join("chat_template.jinja"), "{{ messages }}").expect("written");
    let model = Model::load(dir.path(), DeviceChoice::Cpu).expect("the demo model");
    let engine = Engine::new(model, EngineConfig::default()).expect("an engine");
    let refusal = Server::generating(engine, ServerConfig::new("demo")).err().expect("a refusal");
    assert!(matches!(refusal, ServeError::Config { what: "renderer", .. }), "{refusal}");
    let said = refusal.to_string();
    assert!(said.starts_with("renderer: expected a command that renders chats, for "), "{said}");
    assert!(said.ends_with("chat_template.jinja, found none"), "{said}");
}
