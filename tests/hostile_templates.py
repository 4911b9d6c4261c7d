"""Chat templates that try to use a machine up or to get out of the sandbox: each has to be refused."""

# ruff: noqa: E501 - one template, one line
from __future__ import annotations

DOUBLE = "{% set ns = namespace(s='x', l=[1], d={}, n=2) %}{% for i in range(99) %}"
END = "{% endfor %}"
DAG = "{% set ns = namespace(a=[1], t=(1,), d={'k': 1}) %}{% for i in range(40) %}"

EXHAUSTING = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "five nested loops": "{% for a in range(999) %}" * 5 + END * 5,
    "loop with a filter that keeps nothing": "{% for a in range(999) %}{% for b in range(99999) if false %}"
    + END * 2,
    "long body": "{% for a in range(99999) %}{% set b = a + 1 %}" + "{% if a %}{% endif %}" * 3000 + END,
    "long body in small branches": "{% for a in range(99999) %}"
    + ("{% if true %}" + "{% if a %}{% endif %}" * 9 + "{% endif %}") * 200
    + END,
    "doubled text": DOUBLE + "{% set ns.s = ns.s + ns.s %}" + END,
    "doubled text by tilde": DOUBLE + "{% set ns.s = ns.s ~ ns.s %}" + END,
    "doubled text by join": DOUBLE + "{% set ns.s = [ns.s, ns.s] | join %}" + END,
    "doubled text by method join": DOUBLE + "{% set ns.s = ns.s.join([ns.s, ns.s]) %}" + END,
    "doubled text by replace": DOUBLE + "{% set ns.s = ns.s.replace('x', 'xx') %}" + END,
    "doubled text by the filter replace": DOUBLE + "{% set ns.s = ns.s | replace('x', 'xx') %}" + END,
    "doubled text by a set block": DOUBLE
    + "{% set s %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = s %}"
    + END,
    "doubled text by a macro": "{% macro m(s) %}{{ s }}{{ s }}{% endmacro %}"
    + DOUBLE
    + "{% set ns.s = m(ns.s) %}"
    + END,
    "doubled text by a call block": "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + DOUBLE
    + "{% set s %}{% call m() %}{{ ns.s }}{% endcall %}{% endset %}{% set ns.s = s %}"
    + END,
    "doubled text by a filter block": DOUBLE
    + "{% set s %}{% filter replace('x', 'xx') %}{{ ns.s }}{% endfilter %}{% endset %}{% set ns.s = s %}"
    + END,
    "doubled text by tojson": DOUBLE + "{% set ns.s = ns.s | tojson %}" + END,
    "doubled text by a list as text": DOUBLE + "{% set ns.s = [ns.s, ns.s] | string %}" + END,
    "doubled list": DOUBLE + "{% set ns.l = ns.l + ns.l %}" + END,
    "doubled tuple": DOUBLE + "{% set ns.l = (ns.l, ns.l) %}" + END + "{{ ns.l }}",
    "big text kept many times": "{% set ns = namespace(l=[]) %}{% set s = 'x' * 1000000 %}"
    "{% for i in range(9999) %}{% set ns.l = ns.l + [s + 'y'] %}{% endfor %}",
    "slices kept many times": "{% set ns = namespace(l=[]) %}{% set s = 'x' * 1000000 %}"
    "{% for i in range(9999) %}{% set ns.l = ns.l + [s[1:]] %}{% endfor %}",
    "literals kept many times": "{% set ns = namespace(l=[]) %}{% for i in range(99999) %}{% set ns.l = ["
    + "ns," * 4000
    + "ns.l] %}{% endfor %}",
    "big text put out in a macro": "{% macro m() %}{% for i in range(99999) %}{{ s }}{% endfor %}{% endmacro %}"
    "{% set s = 'x' * 1000000 %}{{ m() }}",
    "many replaced by a long text": "{{ ('x' * 999999).replace('x', 'y' * 999999) }}",
    "many replaced by the filter": "{{ ('x' * 999999) | replace('x', 'y' * 999999) }}",
    "many joined by a long text": "{{ ('y' * 999999).join('x' * 999999) }}",
    "much output": "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "repeated text": "{{ 'x' * 99999999999 }}",
    "repeated list": "{{ ([1] * 99999999) | length }}",
    "repeated tuple": "{{ ((1,) * 99999999) | length }}",
    "repeated text with the number first": "{{ 99999999999 * 'x' }}",
    "center": "{{ 'x'.center(99999999999) }}",
    "center filter": "{{ 'x' | center(99999999999) }}",
    "ljust": "{{ 'x'.ljust(99999999999) }}",
    "rjust": "{{ 'x'.rjust(99999999999) }}",
    "zfill": "{{ 'x'.zfill(99999999999) }}",
    "expandtabs": "{{ '\\t'.expandtabs(99999999999) }}",
    "percent width": "{{ '%99999999999d' % 1 }}",
    "percent star": "{{ '%*d' % (99999999999, 1) }}",
    "format filter": "{{ '%99999999999s' | format('x') }}",
    "format width": "{{ '{:>99999999999}'.format('x') }}",
    "format_map width": "{{ '{a:>99999999999}'.format_map({'a': 1}) }}",
    "indent": "{{ 'x' | indent(99999999999, true) }}",
    "indent by a text": "{{ ('\\n' * 999999) | indent('x' * 999999) }}",
    "indent of many lines": "{{ ('\\n' * 999999) | indent(64, true, true) }}",
    "wordwrap": "{{ ('x ' * 99999) | wordwrap(1) }}" * 9,
    "tojson indent": "{{ [[[1]]] | tojson(indent=99999999999) }}",
    "tojson separators": "{{ [1, 2, 3] | tojson(separators=('x' * 999999, 'x')) }}",
    "batch": "{{ [1] | batch(99999999999, 'x') | list }}",
    "slice": "{{ [1] | slice(99999999999) | list }}",
    "power": "{{ 10 ** 999999999 }}",
    "growing product": DOUBLE + "{% set ns.n = ns.n * ns.n %}" + END,
    "growing product of a shift": DOUBLE + "{% set ns.n = ns.n * 18446744073709551616 %}" + END * 1,
    "number of many digits": "{{ ('9' * 999999) | int }}",
    "number of many digits in base 16": "{{ ('f' * 999999) | int(0, 16) }}",
    "round to many digits": "{{ 1.5 | round(999999999, 'ceil') }}",
    "huge range": "{{ range(99999999999) | list }}",
    "sum of ranges": "{% for i in range(9999) %}{{ range(99999) | sum }}{% endfor %}",
    "list of ranges": "{% for i in range(9999) %}{% set l = range(99999) | list %}{% endfor %}",
    "search in a range": "{% for i in range(99999) %}{{ 'x' in range(99999) }}{% endfor %}",
    "sort": "{% for i in range(999) %}{% set l = range(99999) | reverse | sort %}{% endfor %}",
    "sort of equal beginnings": "{% set s = 'x' * 99999 %}{% set ns = namespace(l=[]) %}"
    "{% for i in range(999) %}{% set ns.l = ns.l + [s + (i | string)] %}{% endfor %}{{ ns.l | sort }}",
    "unique": "{% for i in range(9999) %}{% set l = range(99999) | unique | list %}{% endfor %}",
    "groupby": "{{ range(99999) | groupby('x') }}",
    "dictsort": "{% set d = dict(a='x' * 999999, b='x' * 999999) %}"
    "{% for i in range(99999) %}{% set l = d | dictsort(false, 'value') %}{% endfor %}",
    "map": "{% for i in range(9999) %}{% set l = range(99999) | map('string') | list %}{% endfor %}",
    "map with a filter of the engine": "{% for i in range(99999) %}{{ ['x' * 99999] | map('(steps)') | join }}"
    "{% endfor %}",
    "steps given back": "{% for i in range(99999) %}{% set l = [-99999999] | map('(steps)') | list %}"
    "{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "select": "{% for i in range(9999) %}{% set l = range(99999) | select('odd') | list %}{% endfor %}",
    "split": "{% set s = 'x ' * 500000 %}{% for i in range(9999) %}{% set l = s.split() %}{% endfor %}",
    "splits kept": "{% set ns = namespace(l=[]) %}{% set s = 'xyz ' * 250000 %}"
    "{% for i in range(9999) %}{% set ns.l = [s.split(' '), ns.l] %}{% endfor %}",
    "list of a text": "{% set ns = namespace(l=[]) %}{% set s = 'é😀' * 500000 %}"
    "{% for i in range(9999) %}{% set ns.l = [s | list, ns.l] %}{% endfor %}",
    "upper": "{% set s = 'ß' * 999999 %}{% for i in range(9999) %}{% set t = s | upper %}{% endfor %}",
    "strip": "{% set s = ' ' * 999999 %}{% for i in range(99999) %}{% set t = s.strip() %}{% endfor %}",
    "count": "{% set s = 'x' * 999999 %}{% for i in range(99999) %}{% set t = s.count('xy') %}{% endfor %}",
    "quadratic replace": "{% set s = 'x' * 999999 %}{% for i in range(99999) %}"
    "{% set t = s.replace('x' * 999 + 'y', '') %}{% endfor %}",
    "quadratic in": "{% set s = 'x' * 999999 %}{% for i in range(99999) %}{% set t = ('x' * 9999 + 'y') in s %}"
    "{% endfor %}",
    "comparison of long texts": "{% set s = 'x' * 999999 %}{% set t = s[1:] + 'x' %}{% for i in range(99999) %}"
    "{{ s == t }}{% endfor %}",
    "search among long texts": "{% set s = 'x' * 999999 %}{% set t = s[1:] + 'y' %}"
    "{% for i in range(999) %}{{ t in [s] * 999 }}{% endfor %}",
    "tree of lists printed": DAG + "{% set ns.a = [ns.a, ns.a] %}" + END + "{{ ns.a }}",
    "tree of lists as JSON": DAG + "{% set ns.a = [ns.a, ns.a] %}" + END + "{{ ns.a | tojson }}",
    "tree of lists joined": DAG + "{% set ns.a = [ns.a, ns.a] %}" + END + "{{ ns.a ~ '' }}",
    "tree of lists compared": "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(40) %}"
    "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}",
    "tree of lists tested": "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(40) %}"
    "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a is eq(ns.b) }}",
    "tree of lists searched": "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(40) %}"
    "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ [ns.b].index(ns.a) }}",
    "tree of tuples as a key": DAG + "{% set ns.t = (ns.t, ns.t) %}" + END + "{{ {}[ns.t] }}",
    "tree of tuples got": DAG + "{% set ns.t = (ns.t, ns.t) %}" + END + "{{ {}.get(ns.t) }}",
    "tree of tuples in a dict": DAG + "{% set ns.t = (ns.t, ns.t) %}" + END + "{{ {ns.t: 1} }}",
    "tree of tuples in dict()": DAG + "{% set ns.t = (ns.t, ns.t) %}" + END + "{{ dict([(ns.t, 1)]) }}",
    "tree of tuples unique": DAG + "{% set ns.t = (ns.t, ns.t) %}" + END + "{{ [ns.t] | unique | list }}",
    "tree of dicts": DAG + "{% set ns.d = {'a': ns.d, 'b': ns.d} %}" + END + "{{ ns.d | string }}",
    "tree of namespaces": "{% set ns = namespace(a=1) %}{% for i in range(40) %}"
    "{% set ns.a = namespace(a=ns.a, b=ns.a) %}{% endfor %}{{ ns.a }}",
    "deep list": "{% set ns = namespace(a=[]) %}{% for i in range(99999) %}{% set ns.a = [ns.a] %}{% endfor %}"
    "{{ ns.a }}",
    "endless macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "macros that call each other": "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}"
    "{{ a() }}",
    "doubling macro": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "recursive loop": "{% for a in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "wide recursive loop": "{% for a in range(99) recursive %}{{ loop(range(99999)) if loop.depth < 9 }}{% endfor %}",
    "recursive loop over all": "{% for a in [[1]] recursive %}{% for b in range(99999) %}{{ loop }}{% endfor %}"
    "{{ loop([[1]]) }}{% endfor %}",
    "arguments from a long list": "{% macro m() %}{% set ns.l = [varargs, ns.l] %}{% endmacro %}"
    "{% set ns = namespace(l=[]) %}{% set l = [1] * 1000000 %}{% for i in range(9999) %}{{ m(*l) }}{% endfor %}",
    "date of great width": "{{ strftime_now('%099999999999Y') }}",
    "long date": "{{ strftime_now('%c' * 99999) }}",
    "cycler": "{% set c = cycler(1, 2) %}{{ c.next() }}",
    "lipsum": "{{ lipsum(n=99999) }}",
    "joiner": "{% set j = joiner('x') %}{{ j() }}",
    "autoescape with a filter on a literal": "{% autoescape 'x' | center(99999999999) %}{% endautoescape %}",
    "long literal list": "{{ [" + "1," * 99999 + "] }}",
    "many outputs": "{{ a }}" * 37_000,
    "deep parentheses": "{{ " + "(" * 4000 + "1" + ")" * 4000 + " }}",
    "deep list literal": "{{ " + "[" * 4000 + "]" * 4000 + " }}",
    "deep attributes": "{{ a" + ".b" * 7000 + " }}",
    "deep sum": "{{ 1" + " + 1" * 7000 + " }}",
    "deep not": "{{ " + "not " * 15000 + " 1 }}",
    "deep blocks": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "long chain of elif": "{% if a %}" + "{% elif a %}" * 4000 + "{% endif %}",
    "many macros": "{% macro m() %}{% endmacro %}" * 2000,
    "long number": "{{ " + "9" * 200_000 + " }}",
    "long number of base 16": "{{ 0x" + "f" * 200_000 + " }}",
    "long refusal": "{{ raise_exception('x' * 1000000) }}",
    "refusal with a tree": DAG + "{% set ns.a = [ns.a, ns.a] %}" + END + "{{ raise_exception(ns.a) }}",
    "namespace of a big dict": "{% set d = dict(a='x' * 999) %}{% set ns = namespace(l=[]) %}"
    "{% for i in range(99999) %}{% for j in range(99) %}{% set ns.l = [namespace(d), ns.l] %}{% endfor %}{% endfor %}",
    "title": "{% set s = 'x-' * 499999 %}{% for i in range(999) %}{% set t = s | title %}{% endfor %}",
    "wordcount": "{% set s = 'x ' * 499999 %}{% for i in range(999) %}{% set t = s | wordcount %}{% endfor %}",
    "urlize": "{{ ('www.a' * 99999) | urlize }}",
    "escape": "{% set ns = namespace(s='&') %}{% for i in range(99) %}{% set ns.s = ns.s | escape | string %}"
    "{% endfor %}",
    "truncate": "{{ 'x' | truncate(5, false, 'x' * 99999999999) }}",
    "pprint": DAG + "{% set ns.a = [ns.a, ns.a] %}" + END + "{{ ns.a | pprint }}",
    "xmlattr": "{{ {'a': 'x' * 99999} | xmlattr }}" * 99,
    "random": "{{ range(99999) | random }}",
    "cut into steps": "{% for i in range(99999) %}{% set t = ([1] * 1000000)[::1] %}{% endfor %}",
    "concatenation of many": "{% set s = 'x' * 999999 %}{{ " + "s ~ " * 4000 + "s }}",
}

ESCAPES = {
    "class": "{{ ''.__class__ }}",
    "mro": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class by item": "{{ ''['__class__'] }}",
    "class by attr filter": "{{ '' | attr('__class__') }}",
    "class by map": "{{ [''] | map(attribute='__class__') | list | first }}{{ undefined.x.y }}",
    "class by map of attr": "{{ [''] | map('attr', '__class__') | list }}",
    "class by format": "{{ '{0.__class__}'.format('') }}",
    "class by format_map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "class by format filter": "{{ '{0.__class__}' | format('') }}",
    "class of a list": "{{ [].__class__.__base__ }}",
    "class of a dict": "{{ {}.__class__.__base__ }}",
    "class of a number": "{{ (1).__class__.__base__ }}",
    "class of a message": "{{ messages[0].__class__.__base__ }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "globals of range": "{{ range.__globals__ }}",
    "globals of a macro": "{% macro m() %}{% endmacro %}{{ m.__globals__ }}",
    "environment of a macro": "{% macro m() %}{% endmacro %}{{ m._environment.globals }}",
    "function of a macro": "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "globals of a method": "{{ ''.strip.function.__globals__ }}",
    "owner of a method": "{{ ''.strip.owner.__class__ }}",
    "builtins of namespace": "{{ namespace.__init__.__globals__ }}",
    "attributes of a namespace": "{{ namespace()._Namespace__attrs.x }}",
    "class of a namespace": "{{ namespace().__class__.__base__ }}",
    "loop": "{% for a in [1] %}{{ loop._iterator.x }}{% endfor %}",
    "class of loop": "{% for a in [1] %}{{ loop.__class__.__init__ }}{% endfor %}",
    "function of cycle": "{% for a in [1] %}{{ loop.cycle.__func__.__globals__ }}{% endfor %}",
    "self": "{{ self._TemplateReference__context.environment }}",
    "class of self": "{{ self.__init__.__globals__ }}",
    "class of undefined": "{{ nothing.__class__ }}",
    "caller": "{% macro m() %}{{ caller._func.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "from import": "{% from 'os' import system %}",
    "extends": "{% extends 'x' %}",
    "block": "{% block a %}{{ self.a() }}{% endblock %}",
    "append": "{% set l = [] %}{{ l.append(1) }}",
    "update": "{{ messages[0].update(role='system') }}",
    "pop": "{{ messages.pop() }}",
    "setdefault": "{{ messages[0].setdefault('a', 1) }}",
    "clear": "{{ messages.clear() }}",
    "setting an item": "{% set messages[0] = 1 %}",
    "setting an attribute of a dict": "{% set m = messages[0] %}{% set m.role = 'system' %}",
    "encode": "{{ 'x'.encode('idna') }}",
    "translate": "{{ 'x'.translate({120: 'y' * 9}) }}",
    "maketrans": "{{ ''.maketrans('a', 'b') }}",
    "calling a text": "{{ 'x'() }}",
    "calling a list": "{{ [1]() }}",
    "calling a message": "{{ messages[0]() }}",
    "open": "{{ open('/etc/passwd') }}",
    "builtins": "{{ __builtins__.open }}",
    "environment": "{{ environment.globals }}",
    "context": "{{ context.parent }}",
}
