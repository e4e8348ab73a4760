//! A checkpoint's template as a program. What it does to memory, stack and time is up to it: it belongs in a [renderer](super::renderer).

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Conversation, functions};

/// Work that one rendering may do: about as many instructions, or 64 times as many bytes made. It stops what is merely long, with a better
/// word for it than the process's end.
const FUEL: u64 = 1_000_000;
/// Calls within calls: a template's are few.
const RECURSION: usize = 64;
/// Characters of a refusal: a template writes some itself.
const MAX_REFUSAL_CHARS: usize = 300;
/// The template's name within its environment. No extension, so that nothing is escaped for HTML.
const NAME: &str = "chat";

/// A template as the checkpoint brings it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Template {
    pub source: String,
    /// `bos_token` and its like, which templates name.
    pub special_tokens: Map<String, Value>,
}

/// Why there's no prompt, or no template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Refusal {
    OutOfFuel,
    /// What the template, or its compiler, says.
    Said(String),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        if error.kind() == ErrorKind::OutOfFuel {
            return Refusal::OutOfFuel;
        }
        let mut said = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        if let Some((end, _)) = said.char_indices().nth(MAX_REFUSAL_CHARS) {
            said.replace_range(end.., "...");
        }
        Refusal::Said(said)
    }
}

/// A template that can be rendered.
pub(super) struct Jinja {
    environment: Environment<'static>,
    special_tokens: Map<String, Value>,
}

impl Jinja {
    pub fn compile(template: Template) -> Result<Jinja, Refusal> {
        let mut environment = Environment::new();
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION);
        functions::add(&mut environment);
        environment.add_template_owned(NAME, template.source)?;
        Ok(Jinja { environment, special_tokens: template.special_tokens })
    }

    /// The prompt of a chat.
    pub fn render(&self, conversation: Conversation) -> Result<String, Refusal> {
        let mut variables = self.special_tokens.clone();
        variables.extend(conversation.variables);
        variables.insert("add_generation_prompt".into(), conversation.add_generation_prompt.into());
        variables.insert("tools".into(), Value::Null);
        variables.insert("documents".into(), Value::Null);
        let messages = minijinja::Value::from(minijinja::value::Serde(&conversation.messages));
        let rest = minijinja::Value::from(minijinja::value::Serde(&variables));
        let context = minijinja::context! { messages, ..rest };
        Ok(self.environment.get_template(NAME)?.render(context)?)
    }
}
