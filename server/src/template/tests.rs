use super::*;

fn chat() -> Vec<Message> {
    let message =
        |role: &str, content: &str| Message { role: role.into(), content: content.into(), name: None };
    vec![message("system", "Be <brief>."), message("user", "Hé \"you\"")]
}

fn options() -> RenderOptions {
    RenderOptions { add_generation_prompt: true, variables: Map::new() }
}

/// What a template makes of the chat, or the message of the refusal.
fn rendered(source: &str) -> Result<String, String> {
    let config = serde_json::json!({ "bos_token": "<s>", "eos_token": { "content": "</s>" } });
    let template = ChatTemplate::jinja(Path::new("chat_template.jinja"), source.into(), &config);
    let template = template.map_err(|error| error.to_string())?;
    template.render(&chat(), &options()).map_err(|error| error.message)
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
fn bombs_go_out() {
    let loops = "{% for a in range(100000) %}{% for b in range(100000) %}{% for c in range(100000) %}x{% endfor %}{% endfor %}{% endfor %}";
    let doubling = "{% set ns = namespace(x='x') %}{% for a in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}";
    let nesting = "{% set ns = namespace(x=[]) %}{% for a in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}";
    let deep = "{% set ns = namespace(x=[]) %}{% for a in range(20000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}";
    let wide = "{% set ns = namespace(x=[1]) %}{% for a in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}";
    let recursion = "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}";
    for source in [
        "{{ messages | tojson(indent=10000000000) }}",
        "{{ messages | tojson(indent=17) }}",
        "{{ 'x' * 10000000000 }}",
        "{{ [1] * 10000000000 | list }}",
        "{{ 'x' | indent(10000000000) }}",
        "{{ '%10000000000d' | format(1) }}",
        "{{ 'x'.replace('x', 'x' * 100000000) }}",
        "{{ range(10000000000) | list }}",
        "{{ ().__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{{ raise_exception('no such role') }}",
        "{{ strftime_now('%Y' * 1000) }}",
        loops,
        doubling,
        nesting,
        deep,
        wide,
        recursion,
    ] {
        let began = std::time::Instant::now();
        let refusal = rendered(source).expect_err(source);
        assert!(refusal.starts_with("messages: expected "), "{source}: {refusal}");
        assert!(!refusal.contains('\n') && refusal.len() < 400, "{refusal}");
        assert!(began.elapsed().as_secs() < 10, "{source} took {:?}", began.elapsed());
    }
}

#[test]
fn a_template_that_is_none_is_refused_in_one_line() {
    let refusal = rendered("{% for %}").expect_err("a refusal");
    assert!(refusal.starts_with("chat_template.jinja: expected a chat template, found "), "{refusal}");
    assert!(!refusal.contains('\n'));
}

#[test]
fn templates_are_found_where_checkpoints_keep_them() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = dir.path().join("tokenizer_config.json");
    let load = || ChatTemplate::load(dir.path()).map_err(|error| error.to_string());
    let render = || load().map(|template| template.render(&chat(), &options()).expect("a prompt"));
    assert_eq!(render().as_deref(), Ok("system: Be <brief>.\nuser: Hé \"you\"\nassistant:"));
    std::fs::write(&config, r#"{"chat_template": "in config"}"#).expect("written");
    assert_eq!(render().as_deref(), Ok("in config"));
    let named =
        r#"{"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "named"}]}"#;
    std::fs::write(&config, named).expect("written");
    assert_eq!(render().as_deref(), Ok("named"));
    std::fs::write(dir.path().join("chat_template.jinja"), "in file").expect("written");
    assert_eq!(render().as_deref(), Ok("in file"));
    std::fs::write(&config, "{").expect("written");
    assert!(load().err().is_some_and(|error| error.contains("tokenizer_config.json: expected JSON")));
}

#[test]
fn dates_are_those_of_the_calendar() {
    assert_eq!(functions::date("%Y-%m-%d %H:%M:%S %a %b %%", 0), "1970-01-01 00:00:00 Thu Jan %");
    assert_eq!(functions::date("%d %B %Y, %A", 951_782_400), "29 February 2000, Tuesday");
    assert_eq!(functions::date("%q%", 0), "%q%");
}
