// The server-side classes that Business Rules use, over the functions of host.rs (`host`). ECMAScript 5 but for Proxy, which
// stands in for the platform's own objects. What is newer than ES5 is taken away by es5.js.
(function (global, host, Proxy) {
    'use strict';

    function text(value) {
        return value === null || value === undefined ? '' : String(value);
    }

    // A field of a record: converts to its value, as the platform's GlideElement does.
    function GlideElement(record, name) {
        this.record = record;
        this.name = name;
    }
    GlideElement.prototype = {
        toString: function () { return text(this.record.getValue(this.name)); },
        valueOf: function () { return text(this.record.getValue(this.name)); },
        getName: function () { return this.name; },
        getValue: function () { return this.record.getValue(this.name); },
        setValue: function (value) { this.record.setValue(this.name, value); },
        getDisplayValue: function () { return this.record.getDisplayValue(this.name); },
        nil: function () { return this.toString() === ''; },
        hasValue: function () { return !this.nil(); },
        changes: function () { return this.record.fieldChanges(this.name); },
        changesTo: function (value) { return this.changes() && this.toString() === text(value); }
    };

    // A GlideRecord without its fields. `handle` names a stored record (0 and up), a copy of one (below 0), or nothing yet.
    function Cursor(table, handle, operation, before) {
        this.table = table;
        this.handle = handle === undefined ? null : handle;
        this.op = operation || null;
        this.before = before === undefined ? null : before;
        this.set = {};
        this.terms = [];
        this.order = [];
        this.most = 0;
        this.rows = null;
        this.at = -1;
        this.isNew = false;
        this.workflow = true;
        this.auto = true;
        this.newId = null;
    }
    Cursor.prototype = {
        getValue: function (name) {
            if (Object.prototype.hasOwnProperty.call(this.set, name)) { return this.set[name]; }
            var value = this.handle === null ? '' : host.value(this.handle, name);
            return value === '' ? null : value;
        },
        setValue: function (name, value) { this.set[name] = text(value); },
        getDisplayValue: function (name) {
            if (name === undefined) { return this.handle === null ? '' : host.title(this.handle); }
            return this.handle === null ? text(this.getValue(name)) : host.display(this.handle, name);
        },
        getUniqueValue: function () { return text(this.getValue('sys_id')); },
        getTableName: function () { return this.table; },
        getRecordClassName: function () { return this.handle === null ? this.table : host.className(this.handle); },
        getElement: function (name) { return new GlideElement(this, name); },
        isValidField: function (name) { return host.hasField(this.table, name); },
        isValid: function () { return host.hasTable(this.table); },
        isValidRecord: function () { return this.handle !== null && this.op !== 'delete'; },
        isNewRecord: function () { return this.isNew || this.op === 'insert'; },
        operation: function () { return this.op; },
        fieldChanges: function (name) {
            if (this.op === 'insert') { return text(this.getValue(name)) !== ''; }
            return this.before !== null && host.value(this.before, name) !== text(this.getValue(name));
        },
        setAbortAction: function (abort) { if (abort) { host.abort(); } },
        setWorkflow: function (on) { this.workflow = !!on; },
        autoSysFields: function (on) { this.auto = !!on; },
        setNewGuidValue: function (id) { this.newId = text(id); },
        setLimit: function (most) { this.most = Number(most); },
        addQuery: function (field, operator, value) {
            if (arguments.length === 1) { this.terms.push(text(field)); return; }
            if (arguments.length === 2) { value = operator; operator = '='; }
            this.terms.push(text(field) + text(operator) + text(value));
        },
        addEncodedQuery: function (query) { if (text(query) !== '') { this.terms.push(text(query)); } },
        addNullQuery: function (field) { this.terms.push(field + 'ISEMPTY'); },
        addNotNullQuery: function (field) { this.terms.push(field + 'ISNOTEMPTY'); },
        addActiveQuery: function () { this.addQuery('active', true); },
        orderBy: function (field) { this.order.push('ORDERBY' + field); },
        orderByDesc: function (field) { this.order.push('ORDERBYDESC' + field); },
        encoded: function () { return this.terms.concat(this.order).join('^'); },
        getEncodedQuery: function () { return this.encoded(); },
        query: function () {
            this.rows = host.query(this.table, this.encoded(), this.most);
            this.at = -1;
            this.handle = null;
        },
        hasNext: function () { return this.rows !== null && this.at + 1 < this.rows.length; },
        next: function () {
            if (!this.hasNext()) { return false; }
            this.at += 1;
            this.handle = this.rows[this.at];
            this.set = {};
            return true;
        },
        getRowCount: function () { return this.rows === null ? 0 : this.rows.length; },
        get: function (field, value) {
            this.terms = [];
            if (value === undefined) { this.addQuery('sys_id', field); } else { this.addQuery(field, value); }
            this.most = 1;
            this.query();
            return this.next();
        },
        initialize: function () { this.handle = null; this.set = {}; this.isNew = true; },
        newRecord: function () { this.initialize(); },
        insert: function () {
            if (this.newId !== null) { this.set.sys_id = this.newId; }
            var handle = host.insert(this.table, JSON.stringify(this.set), this.workflow, this.auto);
            if (handle === null) { return null; }
            this.handle = handle;
            this.set = {};
            this.isNew = false;
            return this.getUniqueValue();
        },
        update: function () {
            if (this.handle === null || this.handle < 0) { return null; }
            if (!host.update(this.handle, JSON.stringify(this.set), this.workflow, this.auto)) { return null; }
            this.set = {};
            return this.getUniqueValue();
        },
        deleteRecord: function () {
            if (this.handle === null || this.handle < 0) { return false; }
            return host.remove(this.handle, this.workflow);
        },
        deleteMultiple: function () {
            if (this.most > 0) { throw new Error('deleteMultiple() does not work with setLimit()'); }
            var rows = host.query(this.table, this.encoded(), 0);
            for (var i = 0; i < rows.length; i += 1) { host.remove(rows[i], this.workflow); }
        }
    };

    var traps = {
        get: function (cursor, name) {
            if (typeof name !== 'string') { return undefined; }
            if (typeof Cursor.prototype[name] === 'function') {
                return function () { return Cursor.prototype[name].apply(cursor, arguments); };
            }
            if (cursor.handle !== null && cursor.handle !== undefined ?
                    host.hasFieldOf(cursor.handle, name) : host.hasField(cursor.table, name)) {
                return new GlideElement(cursor, name);
            }
            return undefined;
        },
        set: function (cursor, name, value) { cursor.setValue(name, value); return true; },
        has: function (cursor, name) { return host.hasField(cursor.table, name); }
    };

    function record(cursor) { return new Proxy(cursor, traps); }

    global.GlideRecord = function GlideRecord(table) { return record(new Cursor(text(table))); };

    // What a rule is about; gives back what it has set.
    global.__about = function (table, handle, operation, before) {
        var cursor = new Cursor(table, handle, operation, before);
        global.current = record(cursor);
        global.previous = before === null ? null : record(new Cursor(table, before));
        return function () { return JSON.stringify(cursor.set); };
    };

    function pad(n) { return (n < 10 ? '0' : '') + n; }

    function format(ms) {
        var d = new Date(ms);
        return d.getUTCFullYear() + '-' + pad(d.getUTCMonth() + 1) + '-' + pad(d.getUTCDate()) + ' ' +
            pad(d.getUTCHours()) + ':' + pad(d.getUTCMinutes()) + ':' + pad(d.getUTCSeconds());
    }

    function parse(value) {
        if (value instanceof global.GlideDateTime) { return value.getNumericValue(); }
        var p = /^(\d{4})-(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)$/.exec(text(value));
        return p ? Date.UTC(+p[1], p[2] - 1, +p[3], +p[4], +p[5], +p[6]) : NaN;
    }

    global.GlideDateTime = function GlideDateTime(value) {
        this.ms = value === undefined ? host.now() : parse(value);
    };
    global.GlideDateTime.prototype = {
        getNumericValue: function () { return this.ms; },
        getValue: function () { return format(this.ms); },
        getDisplayValue: function () { return format(this.ms); },
        toString: function () { return format(this.ms); },
        isValid: function () { return !isNaN(this.ms); },
        setValue: function (value) { this.ms = typeof value === 'number' ? value : parse(value); },
        add: function (ms) { this.ms += Number(ms); },
        subtract: function (ms) { this.ms -= Number(ms); },
        addSeconds: function (n) { this.ms += 1000 * n; },
        addDays: function (n) { this.ms += 86400000 * n; },
        addDaysUTC: function (n) { this.ms += 86400000 * n; },
        compareTo: function (other) { return this.ms < other.ms ? -1 : this.ms > other.ms ? 1 : 0; },
        before: function (other) { return this.ms < other.ms; },
        after: function (other) { return this.ms > other.ms; }
    };

    var gs = {
        getUserID: function () { return host.gs('gs.getUserID()'); },
        getUserName: function () { return host.gs('gs.getUserName()'); },
        nowDateTime: function () { return host.gs('gs.nowDateTime()'); },
        nil: function (value) { return text(value) === ''; },
        generateGUID: function () { return host.guid(); },
        getProperty: function (name, otherwise) {
            var value = host.property(text(name));
            return value === '' ? (otherwise === undefined ? null : otherwise) : value;
        }
    };
    ['log', 'info', 'warn', 'error', 'debug', 'print'].forEach(function (level) {
        gs[level] = function (message) { host.log(level, text(message)); };
    });
    ['daysAgo', 'daysAgoStart', 'daysAgoEnd', 'hoursAgo', 'minutesAgo', 'monthsAgo', 'beginningOfToday'].forEach(function (name) {
        gs[name] = function (n) { return host.gs('gs.' + name + '(' + (n === undefined ? '' : Number(n)) + ')'); };
    });
    gs.dateGenerate = function (date, time) { return host.gs("gs.dateGenerate('" + date + "','" + time + "')"); };
    global.gs = gs;

    function RESTMessageV2() { this.request = { method: 'get', headers: [], body: '', endpoint: '', timeout: 30000 }; }
    RESTMessageV2.prototype = {
        setEndpoint: function (url) { this.request.endpoint = text(url); },
        setHttpMethod: function (method) { this.request.method = text(method).toLowerCase(); },
        setRequestHeader: function (name, value) { this.request.headers.push([text(name), text(value)]); },
        setRequestBody: function (body) { this.request.body = text(body); },
        setHttpTimeout: function (ms) { this.request.timeout = Number(ms); },
        setBasicAuth: function (user, password) {
            this.setRequestHeader('Authorization', 'Basic ' + host.base64(text(user) + ':' + text(password)));
        },
        setMIDServer: function () { throw new Error('there is no MID server'); },
        execute: function () { throw new Error('execute() holds up whoever saves the record; use executeAsync()'); },
        executeAsync: function () { host.post(JSON.stringify(this.request)); }
    };
    global.sn_ws = { RESTMessageV2: RESTMessageV2 };

    function CertificateEncryption() {}
    CertificateEncryption.prototype = {
        generateMac: function (key, algorithm, data) { return host.mac(text(key), text(algorithm), text(data)); }
    };
    global.CertificateEncryption = CertificateEncryption;
    global.GlideCertificateEncryption = CertificateEncryption;
    global.GlideStringUtil = {
        base64Encode: function (value) { return host.base64(text(value)); },
        base64Decode: function (value) { return host.unbase64(text(value)); }
    };
    global.GlideDigest = function GlideDigest() {};
    global.GlideDigest.prototype = {
        getSHA256Hex: function (value) { return host.sha256(text(value), true); },
        getSHA256Base64: function (value) { return host.sha256(text(value), false); }
    };
}(this, __host, Proxy));
