use super::jinja::{Jinja, Refusal};
use super::*;

fn chat() -> Conversation {
    let message =
        |role: &str, content: &str| Message { role: role.into(), content: content.into(), name: None };
    Conversation {
        messages: vec![message("system", "Be <brief>."), message("user", "Hé \"you\"")],
        add_generation_prompt: true,
        variables: Map::new(),
    }
}

/// What a template makes of the chat.
fn rendered(source: &str) -> Result<String, Refusal> {
    let config = serde_json::json!({ "bos_token": "<s>", "eos_token": { "content": "</s>" } });
    let template = Template { source: source.into(), special_tokens: special_tokens(&config) };
    Jinja::compile(template)?.render(chat())
}

#[test]
fn a_template_renders_as_its_authors_saw_it() {
    let source = "{{ bos_token }}{% for message in messages %}\n    {%- if loop.first and message['role'] == 'system' %}\n\
        [{{ message.content | trim }}]\n    {% else %}\n{{ '<' + message['role'].upper() + '>' + message['content'] + eos_token }}\n\
        {% endif %}\n{% endfor %}\n{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}";
    assert_eq!(rendered(source).as_deref(), Ok("<s>[Be <brief>.]\n<USER>Hé \"you\"</s>\n<assistant>"));
}

#[test]
fn json_is_written_as_python_does() {
    let value = "{'b': [1, 2.5, none, true], 'a': 'é<\"'}";
    assert_eq!(
        rendered(&format!("{{{{ {value} | tojson }}}}")).as_deref(),
        Ok("{\"b\": [1, 2.5, null, true], \"a\": \"é<\\\"\"}")
    );
    assert_eq!(
        rendered("{{ {'a': [1, 2]} | tojson(indent=2) }}").as_deref(),
        Ok("{\n  \"a\": [\n    1,\n    2\n  ]\n}")
    );
    assert_eq!(rendered("{{ messages[0].content | tojson }}").as_deref(), Ok("\"Be <brief>.\""));
}

#[test]
fn refusals_are_one_short_line() {
    assert_eq!(
        rendered("{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}"),
        Err(Refusal::OutOfFuel)
    );
    let refusals = [
        ("{% for %}", "syntax error: "),
        ("{{ raise_exception('no such\nrole') }}", "invalid operation: no such role"),
        ("{{ raise_exception('x' * 100000) }}", "invalid operation: xxx"),
        ("{{ messages.__class__.__init__.__globals__ }}", "undefined value"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "invalid operation: recursion limit"),
    ];
    for (source, beginning) in refusals {
        let refusal = rendered(source).expect_err(source);
        let Refusal::Said(said) = refusal else { panic!("{source}: {refusal:?}") };
        assert!(said.starts_with(beginning), "{source}: {said}");
        assert!(!said.contains('\n') && said.len() <= 303, "{source}: {said}");
    }
}

#[test]
fn templates_are_found_where_checkpoints_keep_them() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = dir.path().join("tokenizer_config.json");
    let source = || {
        let found = find(dir.path()).map_err(|error| error.to_string());
        found.map(|found| found.map(|(_, template)| template.source))
    };
    let is = |text: &str| Ok(Some(text.to_string()));
    assert_eq!(source(), Ok(None));
    assert_eq!(plain(&chat()), "system: Be <brief>.\nuser: Hé \"you\"\nassistant:");
    std::fs::write(&config, r#"{"chat_template": "in config"}"#).expect("written");
    assert_eq!(source(), is("in config"));
    let named =
        r#"{"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "named"}]}"#;
    std::fs::write(&config, named).expect("written");
    assert_eq!(source(), is("named"));
    std::fs::write(dir.path().join("chat_template.jinja"), "in file").expect("written");
    assert_eq!(source(), is("in file"));
    std::fs::write(&config, "{").expect("written");
    assert!(source().is_err_and(|error| error.contains("tokenizer_config.json: expected JSON")));
}

#[test]
fn dates_are_those_of_the_calendar() {
    assert_eq!(functions::date("%Y-%m-%d %H:%M:%S %a %b %%", 0), "1970-01-01 00:00:00 Thu Jan %");
    assert_eq!(functions::date("%d %B %Y, %A", 951_782_400), "29 February 2000, Tuesday");
    assert_eq!(functions::date("%q%", 0), "%q%");
}
