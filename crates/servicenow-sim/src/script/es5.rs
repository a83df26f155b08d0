//! What the platform's engine does not understand: everything newer than ECMAScript 5.

use std::ops::ControlFlow;

use boa_engine::Source;
use boa_engine::ast::declaration::{Binding, LexicalDeclaration};
use boa_engine::ast::expression::literal::{ObjectMethodDefinition, PropertyDefinition, TemplateLiteral};
use boa_engine::ast::expression::operator::binary::{ArithmeticOp, BinaryOp, LogicalOp};
use boa_engine::ast::expression::operator::{Assign, Binary, BinaryInPrivate};
use boa_engine::ast::expression::{
    Await, ImportCall, ImportMeta, NewTarget, Optional, RegExpLiteral, Spread, SuperCall, TaggedTemplate,
    Yield,
};
use boa_engine::ast::function::{
    ArrowFunction, AsyncArrowFunction, AsyncFunctionDeclaration, AsyncFunctionExpression,
    AsyncGeneratorDeclaration, AsyncGeneratorExpression, ClassDeclaration, ClassExpression, FormalParameter,
    GeneratorDeclaration, GeneratorExpression,
};
use boa_engine::ast::pattern::Pattern;
use boa_engine::ast::property::{MethodDefinitionKind, PropertyName};
use boa_engine::ast::scope::Scope;
use boa_engine::ast::statement::Catch;
use boa_engine::ast::statement::iteration::ForOfLoop;
use boa_engine::ast::visitor::{VisitWith, Visitor};
use boa_engine::interner::Interner;
use boa_engine::parser::Parser;

/// Whether a script is ECMAScript 5; why not, if it is not.
pub(super) fn check(script: &str) -> Result<(), String> {
    let mut interner = Interner::default();
    let mut parser = Parser::new(Source::from_bytes(script));
    let parsed = parser.parse_script(&Scope::new_global(), &mut interner).map_err(|e| e.to_string())?;
    match parsed.visit_with(&mut Newer) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(what) => Err(format!("{what}: the platform's scripts are ECMAScript 5")),
    }
}

struct Newer;

macro_rules! newer {
    ($($visit:ident($node:ty): $what:literal;)*) => {
        $(fn $visit(&mut self, _: &'ast $node) -> ControlFlow<Self::BreakTy> {
            ControlFlow::Break($what)
        })*
    };
}

impl<'ast> Visitor<'ast> for Newer {
    type BreakTy = &'static str;

    newer! {
        visit_lexical_declaration(LexicalDeclaration): "let or const";
        visit_arrow_function(ArrowFunction): "an arrow function";
        visit_async_arrow_function(AsyncArrowFunction): "an async function";
        visit_async_function_declaration(AsyncFunctionDeclaration): "an async function";
        visit_async_function_expression(AsyncFunctionExpression): "an async function";
        visit_async_generator_declaration(AsyncGeneratorDeclaration): "an async function";
        visit_async_generator_expression(AsyncGeneratorExpression): "an async function";
        visit_generator_declaration(GeneratorDeclaration): "a generator";
        visit_generator_expression(GeneratorExpression): "a generator";
        visit_class_declaration(ClassDeclaration): "a class";
        visit_class_expression(ClassExpression): "a class";
        visit_super_call(SuperCall): "super";
        visit_template_literal(TemplateLiteral): "a template literal";
        visit_tagged_template(TaggedTemplate): "a template literal";
        visit_for_of_loop(ForOfLoop): "for … of";
        visit_spread(Spread): "a spread";
        visit_pattern(Pattern): "destructuring";
        visit_optional(Optional): "optional chaining";
        visit_await(Await): "await";
        visit_yield(Yield): "yield";
        visit_import_call(ImportCall): "import";
        visit_import_meta(ImportMeta): "import";
        visit_new_target(NewTarget): "new.target";
        visit_binary_in_private(BinaryInPrivate): "a private name";
    }

    fn visit_formal_parameter(&mut self, node: &'ast FormalParameter) -> ControlFlow<Self::BreakTy> {
        match (node.is_rest_param(), node.init().is_some()) {
            (true, _) => ControlFlow::Break("a rest parameter"),
            (_, true) => ControlFlow::Break("a default of a parameter"),
            _ => node.visit_with(self),
        }
    }

    fn visit_property_definition(&mut self, node: &'ast PropertyDefinition) -> ControlFlow<Self::BreakTy> {
        match node {
            PropertyDefinition::IdentifierReference(_) => ControlFlow::Break("a shorthand property"),
            PropertyDefinition::SpreadObject(_) => ControlFlow::Break("a spread"),
            _ => node.visit_with(self),
        }
    }

    fn visit_object_method_definition(
        &mut self,
        node: &'ast ObjectMethodDefinition,
    ) -> ControlFlow<Self::BreakTy> {
        match node.kind() {
            MethodDefinitionKind::Get | MethodDefinitionKind::Set => node.visit_with(self),
            _ => ControlFlow::Break("a method definition"),
        }
    }

    fn visit_property_name(&mut self, node: &'ast PropertyName) -> ControlFlow<Self::BreakTy> {
        match node {
            PropertyName::Computed(_) => ControlFlow::Break("a computed property"),
            PropertyName::Literal(_) => node.visit_with(self),
        }
    }

    fn visit_binary(&mut self, node: &'ast Binary) -> ControlFlow<Self::BreakTy> {
        match node.op() {
            BinaryOp::Arithmetic(ArithmeticOp::Exp) => ControlFlow::Break("the operator **"),
            BinaryOp::Logical(LogicalOp::Coalesce) => ControlFlow::Break("the operator ??"),
            _ => node.visit_with(self),
        }
    }

    fn visit_assign(&mut self, node: &'ast Assign) -> ControlFlow<Self::BreakTy> {
        use boa_engine::ast::expression::operator::assign::AssignOp;
        match node.op() {
            AssignOp::Exp | AssignOp::BoolAnd | AssignOp::BoolOr | AssignOp::Coalesce => {
                ControlFlow::Break("an assignment operator of today")
            }
            _ => node.visit_with(self),
        }
    }

    fn visit_catch(&mut self, node: &'ast Catch) -> ControlFlow<Self::BreakTy> {
        match node.parameter() {
            None => ControlFlow::Break("a catch without a name"),
            Some(Binding::Pattern(_)) => ControlFlow::Break("destructuring"),
            Some(Binding::Identifier(_)) => node.visit_with(self),
        }
    }

    fn visit_reg_exp_literal(&mut self, node: &'ast RegExpLiteral) -> ControlFlow<Self::BreakTy> {
        let _ = node;
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn what_is_newer_is_refused() {
        let newer = [
            "let a = 1;",
            "const a = 1;",
            "var f = (a) => a;",
            "var s = `a`;",
            "class A {}",
            "for (var a of []) {}",
            "f(...a);",
            "var {a} = b;",
            "var [a] = b;",
            "function f(a = 1) {}",
            "function f(...a) {}",
            "var o = {a};",
            "var o = {f() {}};",
            "var o = {[a]: 1};",
            "a ** b;",
            "a ?? b;",
            "a?.b;",
            "a ||= b;",
            "try {} catch {}",
            "async function f() {}",
            "function* g() {}",
            "var f = function () { return () => 1; };",
            "({ get a() { let b = 1; return b; } });",
        ];
        for script in newer {
            assert!(check(script).is_err(), "{script}");
        }
    }

    #[test]
    fn what_es5_has_is_accepted() {
        let old = [
            "(function executeRule(current, previous) { var a = 'x'; if (a == 1 && !a || a) { return; } })(current, previous);",
            "var o = {a: 1, 'b': 2, get c() { return 3; }, set c(v) {}};",
            "for (var i = 0; i < 3; i++) { try { throw new Error('e'); } catch (e) { gs.error(e); } finally {} }",
            "var a = [1, , 2]; for (var k in a) { switch (k) { case 1: break; default: } }",
            "var r = /^a[b]/gi.test('x'); a += 1; a = b ? c : d; label: while (true) { break label; }",
        ];
        for script in old {
            assert_eq!(check(script), Ok(()), "{script}");
        }
    }
}
