//! The validator: every option that is not known, malformed or missing, by name.

use world::World;

use servicenow_sim::Dataset;

const SERVER: &str = "Valid options in this context are: instance_url, ";
const MAPPING: &str = "Valid options in this context are: auth, ";
const LOGINS: &str = "Valid values are: client_credentials, password, authorization_code, refresh_token, jwt_bearer, basic, api_key";
const TABLE: &str = "Valid options in this context are: table, query, ";
const COLUMN: &str = "Valid options in this context are: field, show";

/// A database with the extension, and things to alter.
async fn prepared() -> World {
    let world = World::bare(Dataset::Small).await;
    world
        .db
        .run(
            "CREATE EXTENSION servicenow_fdw;
             CREATE SERVER there FOREIGN DATA WRAPPER servicenow_fdw OPTIONS (instance_url 'https://acme.example');
             CREATE USER MAPPING FOR PUBLIC SERVER there OPTIONS (auth 'basic', username 'u', password 'p');
             SELECT servicenow.stop_worker();
             CREATE FOREIGN TABLE t (sys_id text) SERVER there OPTIONS (\"table\" 'incident')",
        )
        .await;
    world
}

/// Each statement fails with its SQLSTATE, message, and a hint that begins like this.
async fn refused(world: &World, cases: &[(String, &str, String, &str)]) {
    for (statement, code, message, hint) in cases {
        let error = world.db.error(statement).await;
        assert_eq!((error.code().code(), error.message()), (*code, message.as_str()), "{statement}");
        assert!(error.hint().unwrap_or_default().starts_with(hint), "{statement}: {:?}", error.hint());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_option_nobody_knows_is_refused_with_those_that_are_valid() {
    let world = prepared().await;
    let statements = [
        ("ALTER SERVER there OPTIONS (ADD colour 'red')", "colour", SERVER),
        ("ALTER SERVER there OPTIONS (ADD password 'red')", "password", SERVER),
        ("ALTER SERVER there OPTIONS (ADD \"Page_Size\" '10')", "Page_Size", SERVER),
        ("ALTER USER MAPPING FOR PUBLIC SERVER there OPTIONS (ADD colour 'red')", "colour", MAPPING),
        (
            "ALTER USER MAPPING FOR PUBLIC SERVER there OPTIONS (ADD instance_url 'x')",
            "instance_url",
            MAPPING,
        ),
        ("ALTER FOREIGN TABLE t OPTIONS (ADD colour 'red')", "colour", TABLE),
        ("ALTER FOREIGN TABLE t OPTIONS (ADD field 'red')", "field", TABLE),
        ("ALTER FOREIGN TABLE t ALTER sys_id OPTIONS (ADD colour 'red')", "colour", COLUMN),
        ("ALTER FOREIGN TABLE t ALTER sys_id OPTIONS (ADD \"table\" 'red')", "table", COLUMN),
        (
            "ALTER FOREIGN DATA WRAPPER servicenow_fdw OPTIONS (ADD colour 'red')",
            "colour",
            "There are no valid options in this context.",
        ),
        (
            "IMPORT FOREIGN SCHEMA servicenow FROM SERVER there INTO public OPTIONS (colour 'red')",
            "colour",
            "Valid options in this context are: values",
        ),
    ];
    let cases: Vec<_> = statements
        .into_iter()
        .map(|(statement, name, hint)| {
            (statement.to_owned(), "HV00D", format!("invalid option \"{name}\""), hint)
        })
        .collect();
    refused(&world, &cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_server_option_is_refused_by_name() {
    let world = prepared().await;
    let url = "The value must be an address such as https://acme.service-now.com.";
    let whole = |range: &str| format!("The value must be a whole number from {range}.");
    let (pages, calls) = (whole("1 to 10000"), whole("1 to 64"));
    let cases = [
        ("instance_url", "acme", url),
        ("instance_url", "", url),
        ("instance_url", "ftp://acme.example", url),
        ("instance_url", "https://", url),
        ("instance_url", "https://acme.example/api/now", "The address must not have a path."),
        ("instance_url", "https://acme.example?x=1", "The address must not have a path."),
        ("capture", "magic", "Valid values are: poll, queue, webhook"),
        ("webhook_url", "here", url),
        (
            "webhook_url",
            "http://listener.example",
            "The address must begin with https; plain http is accepted for loopback addresses only, or with server option allow_http.",
        ),
        ("instance_url", "http://acme.example/", "The address must begin with https;"),
        ("instance_url", "http://127.0.0.1.example/", "The address must begin with https;"),
        ("instance_url", "http://10.0.0.1/", "The address must begin with https;"),
        ("instance_url", "http://[::2]/", "The address must begin with https;"),
        ("allow_http", "perhaps", "The value must be true or false."),
        ("poll_interval", "soon", ""),
        ("poll_interval", "10 parsecs", ""),
        ("poll_interval", "99ms", "The value must be at least 100 ms."),
        ("poll_interval", "-10s", "The value must be at least 100 ms."),
        ("connect_timeout", "0", "The value must be at least 1 ms."),
        ("request_timeout", "", ""),
        ("page_size", "0", &pages),
        ("page_size", "10001", &pages),
        ("page_size", "1e3", &pages),
        ("page_size", "many", &pages),
        ("max_concurrency", "0", &calls),
        ("max_concurrency", "65", &calls),
        ("ca_file", "", "The value must not be empty."),
        ("sync_user", "", "The value must not be empty."),
    ];
    let cases: Vec<_> = cases
        .into_iter()
        .map(|(name, value, hint)| {
            let verb = if name == "instance_url" { "SET" } else { "ADD" };
            (
                format!("ALTER SERVER there OPTIONS ({verb} {name} '{value}')"),
                "22023",
                format!("invalid value for option \"{name}\": \"{value}\""),
                hint,
            )
        })
        .collect();
    refused(&world, &cases).await;
    for (statement, message) in [
        ("ALTER SERVER there OPTIONS (DROP instance_url)", "option \"instance_url\" is required"),
        ("CREATE SERVER other FOREIGN DATA WRAPPER servicenow_fdw", "option \"instance_url\" is required"),
    ] {
        let hint = "Set it to the address of the instance, such as https://acme.service-now.com.";
        refused(&world, &[(statement.to_owned(), "HV00J", message.to_owned(), hint)]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_with_credentials_is_refused_without_repeating_them() {
    let world = prepared().await;
    for address in ["https://me:s3cret@acme.example", "https://s3cret@acme.example"] {
        let error =
            world.db.error(&format!("ALTER SERVER there OPTIONS (SET instance_url '{address}')")).await;
        assert_eq!(
            (error.code().code(), error.message()),
            ("22023", "invalid value for option \"instance_url\"")
        );
        assert!(error.hint().is_some_and(|hint| hint.contains("user mapping") && !hint.contains("s3cret")));
    }
    // It may hold some where nobody can tell.
    for address in
        ["https://me:s3cret@acme.example:port", "me:s3cret@acme.example", "https//me:s3cret@acme.example"]
    {
        let error =
            world.db.error(&format!("ALTER SERVER there OPTIONS (SET instance_url '{address}')")).await;
        assert_eq!(
            (error.code().code(), error.message()),
            ("22023", "invalid value for option \"instance_url\"")
        );
    }
}

/// What is malformed may hold credentials too, so it is not repeated.
#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_proxy_or_one_with_credentials_is_refused_without_repeating_it() {
    let world = prepared().await;
    for (address, hint) in [
        ("proxy.example:3128", "The value must be an address such as http://proxy.example:3128;"),
        ("s3cret", "The value must be an address such as http://proxy.example:3128;"),
        ("ftp://s3cret.example", "The value must be an address such as http://proxy.example:3128;"),
        ("http://proxy.example/s3cret", "The value must be an address such as http://proxy.example:3128;"),
        ("http://me:s3cret@proxy.example", "Everybody can read the options of servers,"),
        ("socks5://s3cret@proxy.example", "Everybody can read the options of servers,"),
    ] {
        let statement = format!("ALTER SERVER there OPTIONS (ADD proxy_url '{address}')");
        refused(&world, &[(statement, "22023", "invalid value for option \"proxy_url\"".to_owned(), hint)])
            .await;
    }
    for scheme in ["http", "https", "socks5", "socks5h"] {
        let options = format!("ADD proxy_url '{scheme}://proxy.example:1080/'");
        world
            .db
            .run(&format!(
                "ALTER SERVER there OPTIONS ({options}); ALTER SERVER there OPTIONS (DROP proxy_url)"
            ))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_and_times_in_every_good_form_are_accepted() {
    let world = prepared().await;
    for address in [
        "https://acme.example/",
        "https://acme.example:8443",
        "http://localhost:80",
        "http://127.1.2.3",
        "http://[::1]:8080",
    ] {
        world.db.run(&format!("ALTER SERVER there OPTIONS (SET instance_url '{address}')")).await;
    }
    world
        .db
        .run("ALTER SERVER there OPTIONS (SET instance_url 'http://acme.example', ADD allow_http 'on')")
        .await;
    world.db.run("ALTER SERVER there OPTIONS (ADD poll_interval '1 h', ADD connect_timeout '500', ADD page_size '10000')").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_superuser_allows_plain_http() {
    let world = prepared().await;
    let session = world.session_as("plain").await;
    let role = world.role("plain");
    world.db.run(&format!("GRANT USAGE ON FOREIGN DATA WRAPPER servicenow_fdw TO {role}")).await;
    let server =
        "CREATE SERVER plain FOREIGN DATA WRAPPER servicenow_fdw OPTIONS (instance_url 'http://acme.example'";
    let error = session.error(&format!("{server}, allow_http 'true')")).await;
    assert_eq!(error.code().code(), "42501");
    assert_eq!(error.message(), "only a superuser may set option \"allow_http\"");
    assert_eq!(session.error(&format!("{server}, allow_http 'false')")).await.code().code(), "22023");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_lacks_nothing_it_needs() {
    let world = prepared().await;
    let missing = |options: &str, name: &str, hint: &'static str| {
        (
            format!("CREATE USER MAPPING FOR CURRENT_USER SERVER there OPTIONS ({options})"),
            "HV00J",
            format!("option \"{name}\" is required"),
            hint,
        )
    };
    refused(
        &world,
        &[
            missing("username 'u'", "auth", LOGINS),
            missing("auth 'basic', username 'u'", "password", "It is needed for auth \"basic\"."),
            missing("auth 'basic', password 'p'", "username", "It is needed for auth \"basic\"."),
            missing(
                "auth 'client_credentials', client_id 'c'",
                "client_secret",
                "It is needed for auth \"client_credentials\".",
            ),
            missing(
                "auth 'client_credentials', client_secret 'c'",
                "client_id",
                "It is needed for auth \"client_credentials\".",
            ),
            missing(
                "auth 'password', client_id 'c', client_secret 's', username 'u'",
                "password",
                "It is needed for auth \"password\".",
            ),
            missing(
                "auth 'password', username 'u', password 'p', client_id 'c'",
                "client_secret",
                "It is needed for auth \"password\".",
            ),
            missing("auth 'api_key', password 'p'", "api_key", "It is needed for auth \"api_key\"."),
            missing(
                "auth 'refresh_token', client_id 'c', client_secret 's'",
                "refresh_token",
                "It is needed for auth \"refresh_token\".",
            ),
            missing(
                "auth 'jwt_bearer', client_id 'c', client_secret 's', subject 'u'",
                "private_key",
                "It is needed for auth \"jwt_bearer\".",
            ),
            missing(
                "auth 'authorization_code', client_secret 's'",
                "client_id",
                "It is needed for auth \"authorization_code\".",
            ),
        ],
    )
    .await;
    for auth in ["kerberos", "BASIC", ""] {
        let statement = format!("CREATE USER MAPPING FOR CURRENT_USER SERVER there OPTIONS (auth '{auth}')");
        let message = format!("invalid value for option \"auth\": \"{auth}\"");
        refused(&world, &[(statement, "22023", message, LOGINS)]).await;
    }
    let error = world.db.error("CREATE USER MAPPING FOR CURRENT_USER SERVER there").await;
    assert_eq!((error.code().code(), error.message()), ("HV00J", "option \"auth\" is required"));
}

/// The text of an error ends up in logs.
#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_secret_is_not_repeated() {
    let world = prepared().await;
    for options in [
        "auth 'basic', username 'u', password 's3cret', colour 'red'",
        "auth 'client_credentials', client_id 'c', client_secret 's3cret', token_url 'nowhere'",
        "auth 'password', client_secret 's3cret', password 's3cret'",
        "auth 'basic', username 'u', password 's3cret', token_url 'https://u:s3cret@acme.example'",
        "auth 'jwt_bearer', client_id 'c', client_secret 's', subject 'u', private_key 's3cret'",
        "auth 'api_key', api_key 's3cret', api_key_file '/s3cret'",
    ] {
        let error = world
            .db
            .error(&format!("CREATE USER MAPPING FOR CURRENT_USER SERVER there OPTIONS ({options})"))
            .await;
        let said = format!("{} {:?} {:?}", error.message(), error.detail(), error.hint());
        assert!(!said.contains("s3cret"), "{said}");
    }
    let error = world.db.error("ALTER USER MAPPING FOR PUBLIC SERVER there OPTIONS (SET password '')").await;
    assert_eq!(error.message(), "invalid value for option \"password\": \"\"");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_may_read_the_servers_files_has_secrets_in_them() {
    let world = prepared().await;
    let session = world.session_as("plain").await;
    let role = world.role("plain");
    world.db.run(&format!("ALTER SERVER there OWNER TO {role}")).await;
    let statement = format!(
        "CREATE USER MAPPING FOR {role} SERVER there OPTIONS (auth 'basic', username 'u', password_file '/etc/passwd')"
    );
    let error = session.error(&statement).await;
    assert_eq!(
        (error.code().code(), error.message()),
        ("42501", "permission denied to set option \"password_file\"")
    );
    world.db.run(&format!("GRANT pg_read_server_files TO {role}")).await;
    session.run(&statement).await;
    let both = format!("ALTER USER MAPPING FOR {role} SERVER there OPTIONS (ADD password 'p')");
    let message = "options \"password\" and \"password_file\" cannot be used together".to_owned();
    refused(&world, &[(both, "22023", message, "Drop one of them.")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_table_or_column_option_is_refused_by_name() {
    let world = prepared().await;
    let name = "A table's name consists of letters, digits and underscores.";
    let field = "A field's name consists of letters, digits and underscores;";
    let query = "The value must be an encoded query: ";
    let table = |name: &str, value: &str, hint: &'static str| {
        let verb = if name == "table" { "SET" } else { "ADD" };
        (
            format!("ALTER FOREIGN TABLE t OPTIONS ({verb} \"{name}\" '{}')", value.replace('\'', "''")),
            "22023",
            format!("invalid value for option \"{name}\": \"{value}\""),
            hint,
        )
    };
    let column = |name: &str, value: &str, hint: &'static str| {
        (
            format!("ALTER FOREIGN TABLE t ADD COLUMN c text OPTIONS ({name} '{value}')"),
            "22023",
            format!("invalid value for option \"{name}\": \"{value}\""),
            hint,
        )
    };
    refused(
        &world,
        &[
            table("table", "in cident", name),
            table("table", "../sys_user", name),
            table("table", "", name),
            table("query", "nonsense", query),
            table("query", "active=true^and this", query),
            table("query", "RLQUERYincident.caller_id,>=1^ENDRLQUERY", query),
            table("mode", "dead", "Valid values are: cached"),
            table("updatable", "perhaps", "The value must be true or false."),
            table("poll_interval", "1ms", "The value must be at least 100 ms."),
            column("field", "in cident", field),
            column("field", "caller_id..email", field),
            column("field", "", field),
            column("show", "both", "Valid values are: value, label"),
        ],
    )
    .await;
    let import =
        "IMPORT FOREIGN SCHEMA servicenow FROM SERVER there INTO public OPTIONS (\"values\" 'perhaps')";
    let message = "invalid value for option \"values\": \"perhaps\"".to_owned();
    refused(&world, &[(import.to_owned(), "22023", message, "The value must be true or false.")]).await;
}
