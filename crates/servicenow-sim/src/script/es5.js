// Only what ECMAScript 5 has, and the platform's classes, is left to scripts.
(function (global) {
    var kept = {
        Object: ['getPrototypeOf', 'getOwnPropertyDescriptor', 'getOwnPropertyNames', 'create', 'defineProperty',
            'defineProperties', 'seal', 'freeze', 'preventExtensions', 'isSealed', 'isFrozen', 'isExtensible', 'keys'],
        Array: ['isArray'],
        String: ['fromCharCode'],
        Number: ['MAX_VALUE', 'MIN_VALUE', 'NaN', 'NEGATIVE_INFINITY', 'POSITIVE_INFINITY'],
        Math: ['E', 'LN10', 'LN2', 'LOG2E', 'LOG10E', 'PI', 'SQRT1_2', 'SQRT2', 'abs', 'acos', 'asin', 'atan', 'atan2', 'ceil',
            'cos', 'exp', 'floor', 'log', 'max', 'min', 'pow', 'random', 'round', 'sin', 'sqrt', 'tan']
    };
    var methods = {
        Array: ['constructor', 'length', 'toString', 'toLocaleString', 'concat', 'join', 'pop', 'push', 'reverse', 'shift', 'slice',
            'sort', 'splice', 'unshift', 'indexOf', 'lastIndexOf', 'every', 'some', 'forEach', 'map', 'filter', 'reduce',
            'reduceRight'],
        String: ['constructor', 'length', 'toString', 'valueOf', 'charAt', 'charCodeAt', 'concat', 'indexOf', 'lastIndexOf',
            'localeCompare', 'match', 'replace', 'search', 'slice', 'split', 'substring', 'substr', 'toLowerCase',
            'toLocaleLowerCase', 'toUpperCase', 'toLocaleUpperCase', 'trim']
    };
    var constructors = ['Object', 'Function', 'Array', 'String', 'Boolean', 'Number', 'Date', 'RegExp', 'Error', 'EvalError',
        'RangeError', 'ReferenceError', 'SyntaxError', 'TypeError', 'URIError', 'Math', 'JSON', 'NaN', 'Infinity', 'undefined',
        'eval', 'parseInt', 'parseFloat', 'isNaN', 'isFinite', 'decodeURI', 'decodeURIComponent', 'encodeURI',
        'encodeURIComponent', 'escape', 'unescape'];
    var ours = ['GlideRecord', 'GlideDateTime', 'gs', 'sn_ws', 'CertificateEncryption', 'GlideCertificateEncryption',
        'GlideStringUtil', 'GlideDigest', '__about', 'current', 'previous'];
    // Without the methods that it takes away from under itself: the engine remembers where it has found them.
    function keep(object, names) {
        var all = Object.getOwnPropertyNames(object), wanted = { prototype: true, length: true, name: true };
        for (var i = 0; i < names.length; i += 1) { wanted[names[i]] = true; }
        for (i = 0; i < all.length; i += 1) {
            if (wanted[all[i]] !== true) { delete object[all[i]]; }
        }
    }
    for (var type in methods) { keep(global[type].prototype, methods[type]); }
    for (var name in kept) { keep(global[name], kept[name]); }
    for (var i = 0; i < ours.length; i += 1) { constructors[constructors.length] = ours[i]; }
    keep(global, constructors);
}(this));
