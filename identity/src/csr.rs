//! Certificate signing requests (PKCS #10, RFC 2986).

use rcgen::string::Ia5String;
use rcgen::{CertificateParams, DistinguishedName, SanType};
use thiserror::Error;

use crate::{PrivateKey, SpiffeId};

/// Asks for a certificate for `identity` on `key`, as PEM.
///
/// The subject is empty, and the one requested extension is a critical subjectAltName with the identity as its only
/// URI. A common name would make istiod copy it into the certificate, and some issuers compare the name with the
/// caller's, so nothing else is put in. Errors: the identity is not ASCII, or signing failed.
pub fn certificate_request(identity: &SpiffeId, key: &PrivateKey) -> Result<String, CsrError> {
    let uri = Ia5String::try_from(identity.as_str()).map_err(CsrError::Name)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    // Critical because the subject is empty (RFC 5280 section 4.2.1.6).
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.serialize_request(key).and_then(|request| request.pem()).map_err(CsrError::Encode)
}

/// Why there is no certificate signing request.
#[derive(Debug, Error)]
pub enum CsrError {
    /// A URI in a certificate consists of ASCII characters, and this identity does not.
    #[error("the identity cannot be written as a URI in a certificate")]
    Name(#[source] rcgen::Error),
    /// Encoding or signing failed.
    #[error("encoding the certificate signing request failed")]
    Encode(#[source] rcgen::Error),
}

#[cfg(test)]
mod tests {
    use x509_parser::certification_request::X509CertificationRequest;
    use x509_parser::cri_attributes::ParsedCriAttribute;
    use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension};

    use super::*;

    #[test]
    fn a_request_has_an_empty_subject_and_one_critical_uri() {
        let identity: SpiffeId = "spiffe://td/ns/ns1/sa/sa1".parse().unwrap();
        let key = PrivateKey::generate().unwrap();
        let text = certificate_request(&identity, &key).unwrap();
        assert!(text.starts_with("-----BEGIN CERTIFICATE REQUEST-----\n"), "{text}");

        let (_, pem) = x509_parser::pem::parse_x509_pem(text.as_bytes()).unwrap();
        let (rest, request) = X509CertificationRequest::from_der(&pem.contents).unwrap();
        assert!(rest.is_empty());
        request.verify_signature().unwrap();
        let info = &request.certification_request_info;
        assert_eq!(info.subject.iter().count(), 0);
        assert_eq!(info.subject_pki.raw, key.public_key_info().as_ref());

        let [attribute] = info.attributes() else { panic!("one attribute") };
        let ParsedCriAttribute::ExtensionRequest(requested) = attribute.parsed_attribute() else {
            panic!("an extension request")
        };
        let [extension] = &requested.extensions[..] else { panic!("one extension") };
        assert!(extension.critical);
        let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
            panic!("a subject alternative name")
        };
        assert_eq!(names.general_names, [GeneralName::URI(identity.as_str())]);
    }

    #[test]
    fn an_identity_that_no_certificate_can_carry_is_an_error() {
        let identity = SpiffeId::new("td", "ns", "störung").unwrap();
        let error = certificate_request(&identity, &PrivateKey::generate().unwrap()).unwrap_err();
        assert!(matches!(error, CsrError::Name(_)));
    }
}
